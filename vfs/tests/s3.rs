//! Buckets of a real server keep the contract. `TIDEFS_TEST_S3` names one (`scripts/ceph start` prints it, with keys).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "s3")]

mod s3_server;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use s3_server::{Action, Request, Server};
use vfs::s3::{Credentials, S3Volume};
use vfs::testkit::{RULES, conformance};
use vfs::{
    Body, ErrorClass, ObjectKey, Precondition, Retry, RetryPolicy, S3Config, Secret, Spec,
    StopSignal, Volume, VolumeExt,
};

/// The bucket to test in, below a prefix that nobody else has. Without a server there is nothing to test.
fn bucket() -> Option<S3Config> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(text) = std::env::var_os("TIDEFS_TEST_S3") else {
        eprintln!("skipped: TIDEFS_TEST_S3 names no server (scripts/ceph start)");
        return None;
    };
    let Spec::S3Url(url) = Spec::parse(text.to_str().unwrap()).unwrap() else {
        panic!("TIDEFS_TEST_S3 is no bucket");
    };
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let own = format!("t{:x}-{}-{number}", now.as_nanos(), std::process::id());
    Some(url.config().clone().below(&own))
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// Everything that a test has put goes again.
struct Swept(S3Volume);

impl std::ops::Deref for Swept {
    type Target = S3Volume;
    fn deref(&self) -> &S3Volume {
        &self.0
    }
}

impl Drop for Swept {
    fn drop(&mut self) {
        let volume = S3Volume::open(self.0.config().clone()).unwrap();
        let mut keys = Vec::new();
        let listed = volume.for_each("", |meta| -> vfs::Result<()> {
            keys.push(meta.key);
            Ok(())
        });
        listed.and_then(|()| volume.delete(&keys)).unwrap();
    }
}

fn open(config: S3Config) -> Swept {
    Swept(S3Volume::open(config).unwrap())
}

/// The contract, but for what a server that ignores conditions cannot keep: there it is an early warning, as documented.
fn keeps_the_contract(make: &dyn Fn() -> S3Volume) {
    let conditional = make().probe().unwrap().exclusive_create;
    for (name, rule) in RULES {
        if *name == "if-absent has one winner" && !conditional {
            eprintln!("left out: {name}");
            continue;
        }
        eprintln!("{name}");
        let volume = Retry::new(Arc::new(make()), RetryPolicy::default(), StopSignal::new());
        rule(&volume);
    }
}

#[test]
fn a_bucket_keeps_the_contract() {
    let Some(config) = bucket() else { return };
    if S3Volume::open(config)
        .unwrap()
        .probe()
        .unwrap()
        .exclusive_create
    {
        conformance(&|| Arc::new(S3Volume::open(bucket().unwrap()).unwrap()));
    } else {
        keeps_the_contract(&|| S3Volume::open(bucket().unwrap()).unwrap());
    }
}

#[test]
fn a_bucket_of_small_parts_and_few_connections_keeps_the_contract() {
    let Some(_) = bucket() else { return };
    keeps_the_contract(&|| {
        let mut config = bucket().unwrap();
        config.limits.single_put_len_max = 1 << 20;
        config.limits.part_len = 5 << 20;
        config.limits.memory_max = 5 << 20;
        config.limits.connections_max = 1;
        config.sign_bodies = true;
        S3Volume::open(config).unwrap()
    });
}

#[test]
fn a_large_file_goes_in_parts_and_comes_back_whole() {
    let Some(mut config) = bucket() else { return };
    config.limits.single_put_len_max = 6 << 20;
    config.limits.part_len = 5 << 20;
    config.limits.memory_max = 12 << 20;
    let volume = open(config);
    let sent = bytes((17 << 20) + 3);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&sent).unwrap();
    let key = key("items/ab/large.pack");
    let body = Body::File {
        file: &file,
        len: sent.len() as u64,
    };
    for _ in 0..2 {
        let meta = volume.put(&key, body, Precondition::None).unwrap();
        assert_eq!(meta.len, sent.len() as u64);
    }
    assert!(
        volume.get_whole(&key, 32 << 20).unwrap() == sent,
        "other bytes"
    );
    let across = (5 << 20) - 10..(5 << 20) + 10;
    assert_eq!(
        volume
            .get(&key, across.start as u64..across.end as u64)
            .unwrap(),
        &sent[across]
    );
    let error = volume.put(&key, body, Precondition::IfAbsent).unwrap_err();
    assert!(error.is_already_exists(), "{error:?}");
    assert_eq!(
        volume.sweep_temporary(&[""], Duration::ZERO).unwrap(),
        0,
        "an upload was left behind"
    );
}

#[test]
fn an_upload_that_fails_midway_leaves_nothing_to_sweep() {
    let Some(mut config) = bucket() else { return };
    config.limits.single_put_len_max = 1 << 20;
    config.limits.part_len = 5 << 20;
    let volume = open(config);
    let sent = bytes(11 << 20);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&sent).unwrap();
    let body = Body::File {
        file: &file,
        len: sent.len() as u64 + 1,
    };
    let error = volume
        .put(&key("items/ab/x.pack"), body, Precondition::None)
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent, "{error:?}");
    assert_eq!(volume.head(&key("items/ab/x.pack")).unwrap(), None);
    drop(volume);
}

/// A volume whose requests go through a server of the test, which cuts those that `cut` names.
fn through(mut config: S3Config, cut: fn(&Request) -> bool) -> (S3Volume, Server) {
    let address = config.endpoint.strip_prefix("http://").unwrap().to_owned();
    let server = Server::start(move |request, _| {
        if cut(request) {
            Action::Cut
        } else {
            Action::Forward(address.clone())
        }
    });
    config.endpoint.clone_from(&server.endpoint);
    (S3Volume::open(config).unwrap(), server)
}

#[test]
fn an_upload_that_could_not_be_aborted_is_found_by_the_sweep() {
    let Some(mut config) = bucket() else { return };
    config.limits.single_put_len_max = 1 << 20;
    config.limits.part_len = 5 << 20;
    let (broken, server) = through(config.clone(), |request| {
        request.is("POST", "uploadId") || request.method == "DELETE"
    });
    let large = key("items/ab/x.pack");
    let error = broken
        .put(&large, Body::Bytes(&bytes(6 << 20)), Precondition::None)
        .unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    server.wait_for("DELETE", "uploadId");
    let volume = open(config);
    assert_eq!(
        volume
            .sweep_temporary(&[""], Duration::from_secs(3600))
            .unwrap(),
        0,
        "it is not old"
    );
    assert_eq!(volume.sweep_temporary(&[""], Duration::ZERO).unwrap(), 1);
    assert_eq!(volume.sweep_temporary(&[""], Duration::ZERO).unwrap(), 0);
    assert_eq!(volume.head(&large).unwrap(), None);
}

#[test]
fn an_exclusive_put_whose_answer_is_lost_is_won() {
    let Some(config) = bucket() else { return };
    let (direct, once) = (open(config.clone()), key("server/once"));
    direct
        .put(&once, Body::Bytes(b"ours"), Precondition::IfAbsent)
        .unwrap();
    direct.delete(std::slice::from_ref(&once)).unwrap();
    let address = config.endpoint.strip_prefix("http://").unwrap().to_owned();
    let lost = AtomicU64::new(0);
    let server = Server::start(move |request, _| {
        if request.is("PUT", "server/once") && lost.fetch_add(1, Ordering::Relaxed) == 0 {
            Action::ForwardThenCut(address.clone())
        } else {
            Action::Forward(address.clone())
        }
    });
    let mut config = config;
    config.endpoint.clone_from(&server.endpoint);
    let volume = Retry::new(
        Arc::new(S3Volume::open(config).unwrap()),
        RetryPolicy::default(),
        StopSignal::new(),
    );
    volume
        .put(&once, Body::Bytes(b"ours"), Precondition::IfAbsent)
        .unwrap();
    let puts = server
        .requests()
        .into_iter()
        .filter(|request| request.is("PUT", "server/once"));
    assert_eq!(puts.count(), 2);
}

#[test]
fn a_probe_finds_out_what_the_server_can_do() {
    let Some(config) = bucket() else { return };
    let volume = open(config);
    let found = volume.probe().unwrap();
    eprintln!("{found:#?}");
    let profile = found.bucket.as_ref().unwrap();
    assert!(
        found.list_after_put && profile.multipart && profile.etag_is_md5,
        "{found:?}"
    );
    assert!(profile.checks_content && profile.batch_delete, "{found:?}");
    assert!(profile.clock_skew_secs.unwrap().abs() < 60, "{found:?}");
    // What it says of conditions is what a put does.
    let key = key("server/once");
    volume
        .put(&key, Body::Bytes(b"1"), Precondition::IfAbsent)
        .unwrap();
    let again = volume.put(&key, Body::Bytes(b"2"), Precondition::IfAbsent);
    assert!(again.unwrap_err().is_already_exists(), "{found:?}");
}

#[test]
fn more_keys_than_a_page_are_listed_and_deleted() {
    let Some(config) = bucket() else { return };
    let volume = open(config);
    let keys: Vec<ObjectKey> = (0..1203)
        .map(|n| key(&format!("items/{:02x}/{n:05}", n / 100)))
        .collect();
    std::thread::scope(|scope| {
        for share in keys.chunks(160) {
            let volume = &volume;
            scope.spawn(move || {
                for key in share {
                    volume
                        .put(
                            key,
                            Body::Bytes(key.as_str().as_bytes()),
                            Precondition::None,
                        )
                        .unwrap();
                }
            });
        }
    });
    let mut seen = Vec::new();
    volume
        .for_each("items/", |meta| -> vfs::Result<()> {
            seen.push(meta.key);
            Ok(())
        })
        .unwrap();
    assert!(seen == keys, "{} of {} keys", seen.len(), keys.len());
    volume.delete(&keys).unwrap();
    assert!(
        volume
            .list("", None, 1.try_into().unwrap())
            .unwrap()
            .objects
            .is_empty()
    );
}

#[test]
fn another_prefix_of_the_bucket_is_another_volume() {
    let Some(config) = bucket() else { return };
    let whole = open(config.clone());
    let one = S3Volume::open(config.clone().below("one")).unwrap();
    let two = S3Volume::open(config.below("one-and-a-half")).unwrap();
    one.put(&key("server/x"), Body::Bytes(b"1"), Precondition::None)
        .unwrap();
    assert_eq!(two.head(&key("server/x")).unwrap(), None);
    assert!(
        two.list("", None, 10.try_into().unwrap())
            .unwrap()
            .objects
            .is_empty()
    );
    assert_eq!(
        whole.get_whole(&key("one/server/x"), 9).unwrap(),
        b"1".as_slice()
    );
}

#[test]
fn what_is_wrong_with_a_bucket_is_named() {
    let Some(config) = bucket() else { return };
    let refused = |change: &dyn Fn(&mut S3Config)| {
        let mut config = config.clone();
        change(&mut config);
        let volume = S3Volume::open(config).unwrap();
        let error = volume.head(&key("a")).unwrap_err();
        assert!(!error.is_not_found());
        error
    };
    let error = refused(&|config| config.bucket = "tidefs-none".into());
    assert!(error.to_string().contains("no such bucket"), "{error}");
    let error = refused(&|config| {
        let Credentials::Environment = config.credentials else {
            panic!()
        };
        config.credentials = Credentials::Static {
            access_key: std::env::var("AWS_ACCESS_KEY_ID").unwrap(),
            secret: Secret::new("sk-secret"),
            session_token: None,
        };
    });
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(error.to_string().contains("secret key"), "{error}");
    assert!(!error.chain().contains("sk-secret"), "{error}");
    let error = refused(&|config| config.endpoint = "http://127.0.0.1:1".into());
    assert!(error.is_unreachable(), "{error:?}");
    let error = refused(&|config| config.endpoint = "http://no-such-host.invalid".into());
    assert!(error.is_unreachable(), "{error:?}");
}
