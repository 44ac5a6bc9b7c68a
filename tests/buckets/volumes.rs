//! Volumes in a bucket of a real server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::place::{Ended, PROGRAM, Place};

/// What `TIDEFS_TEST_S3` names, taken apart: endpoint, bucket, region, and the keys for it.
struct Server {
    endpoint: String,
    bucket: String,
    region: String,
    keys: (String, String),
}

fn server() -> Option<Server> {
    let Ok(url) = std::env::var("TIDEFS_TEST_S3") else {
        eprintln!("TIDEFS_TEST_S3 names no server: not tried");
        return None;
    };
    let key = |name: &str| std::env::var(name).unwrap();
    let place = url.strip_prefix("s3://").unwrap();
    let (place, query) = place.split_once('?').unwrap_or((place, ""));
    let (host, bucket) = place.split_once('/').unwrap();
    let scheme = if query.contains("tls=off") {
        "http"
    } else {
        "https"
    };
    let region = query
        .split('&')
        .find_map(|part| part.strip_prefix("region="));
    Some(Server {
        endpoint: format!("{scheme}://{host}"),
        bucket: bucket.split('/').next().unwrap().to_owned(),
        region: region.unwrap_or("us-east-1").to_owned(),
        keys: (key("AWS_ACCESS_KEY_ID"), key("AWS_SECRET_ACCESS_KEY")),
    })
}

impl Server {
    /// Adds it as `nas`, with a prefix that no other run has.
    fn add(&self, place: &Place) -> Value {
        let prefix = format!(
            "test-{}-{}",
            std::process::id(),
            place.dir.path().file_name().unwrap().to_str().unwrap()
        );
        let prefix: String = prefix
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        let args = [
            "--json",
            "bucket",
            "add",
            "--label",
            "nas",
            "--type",
            "ceph",
            "--bucket",
            &self.bucket,
            "--endpoint",
            &self.endpoint,
            "--region",
            &self.region,
            "--prefix",
            &prefix.to_lowercase(),
        ];
        let mut command = place.command(&args);
        command
            .env("AWS_ACCESS_KEY_ID", &self.keys.0)
            .env("AWS_SECRET_ACCESS_KEY", &self.keys.1);
        let ended = Ended::of(command.output().unwrap());
        ended.hides(&self.keys.1);
        ended.json()
    }
}

/// Takes away what a test that failed has left mounted.
struct Unmount<'a>(&'a Place);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        for name in ["mnt", "view"] {
            // Not mounted is as good.
            let _ = Command::new("umount")
                .args(["-l", &self.0.text(name)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn can_mount() -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("mounting needs root and /dev/fuse: not tried");
    }
    can
}

/// Bytes that neither compress nor repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Writes `name` through the mount of the backup path `path`, and has it archived.
fn back_up(place: &Place, path: &str, name: &str, content: &[u8]) {
    let mnt = place.text("mnt");
    place.run(&["-p", path, "mount", &mnt]).ok();
    fs::write(place.path("mnt").join(name), content).unwrap();
    let waited = place.run(&["-p", path, "wait", "--timeout", "60"]);
    let unmounted = place.run(&["umount", &mnt]);
    waited.ok();
    unmounted.ok();
}

fn read_view(place: &Place, source: &str, name: &str) -> Vec<u8> {
    let view = place.text("view");
    place.run(&["mount", "--external", source, &view]).ok();
    let read = fs::read(place.path("view").join(name));
    place.run(&["umount", &view]).ok();
    read.unwrap()
}

#[test]
fn a_volume_lives_in_a_bucket_and_comes_back_from_it_alone() {
    let (Some(server), true) = (server(), can_mount()) else {
        return;
    };
    let place = Place::new();
    let _unmount = Unmount(&place);
    let added = server.add(&place);
    let tested = place.run(&["--json", "bucket", "test", "nas"]).json();
    assert_eq!(
        tested.pointer("/profile/profile/list_after_put"),
        Some(&json!(true)),
        "{tested}"
    );
    assert!(
        tested
            .pointer("/profile/profile/bucket/clock_skew_secs")
            .is_some(),
        "{tested}"
    );
    place.run(&["init"]).ok();
    let set = place
        .run(&["--json", "store", "set", "s3", "nas", "--prefix", "host-7"])
        .json();
    assert_eq!(set.pointer("/store/bucket"), added.pointer("/bucket/id"));
    let content = noise(3_000_000);
    back_up(&place, &place.text("backup"), "file", &content);
    let status = place.run(&["status"]).ok();
    assert!(status.contains("s3:nas/host-7"), "{status}");
    let shown = place.run(&["store", "show"]).ok();
    assert!(shown.contains("s3:nas/host-7"), "{shown}");
    place.run(&["check", "--external", "--read-data"]).ok();

    // Another server, and this one's own prefix within, are refused.
    let other = place.text("other");
    place.run(&["-p", &other, "init"]).ok();
    place
        .run(&[
            "-p", &other, "store", "set", "s3", "nas", "--prefix", "host-7",
        ])
        .says(1, "belongs to volume");
    place
        .run(&[
            "-p",
            &other,
            "store",
            "set",
            "s3",
            "nas",
            "--prefix",
            "host-7/deep",
        ])
        .says(1, "lies within");
    // By default each has a prefix of its own.
    place.run(&["-p", &other, "store", "set", "s3", "nas"]).ok();

    assert_eq!(read_view(&place, "s3:nas/host-7", "file"), content);
    let listed = place.run(&["--json", "bucket", "list", "--usage"]).json();
    let volumes = listed
        .pointer("/buckets/0/usage/volumes")
        .unwrap()
        .as_array()
        .unwrap();
    let ours = volumes
        .iter()
        .find(|volume| volume["prefix"] == "host-7")
        .unwrap();
    assert!(ours["bytes"].as_u64().unwrap() > 3_000_000, "{listed}");
    place
        .run(&["bucket", "remove", "nas"])
        .says(1, &place.text("backup"));

    // With nothing but the address and keys in the environment, as on a fresh machine.
    let s3 = &added["bucket"]["s3"];
    let url = format!(
        "s3://{}/{}/{}/host-7?region={}&tls=off",
        server.endpoint.split_once("://").unwrap().1,
        server.bucket,
        s3["prefix"].as_str().unwrap(),
        server.region
    );
    let view = place.text("view");
    let mut fresh = place.command(&["mount", "--external", &url, &view]);
    fresh
        .env("TIDEFS_CONFIG_DIR", place.path("none"))
        .env("AWS_ACCESS_KEY_ID", &server.keys.0)
        .env("AWS_SECRET_ACCESS_KEY", &server.keys.1);
    Ended::of(fresh.output().unwrap()).ok();
    assert_eq!(fs::read(place.path("view/file")).unwrap(), content);
    place.run(&["umount", &view]).ok();

    // As mount(8) and fstab name it.
    let helper = place.path("mount.tidefs");
    std::os::unix::fs::symlink(PROGRAM, &helper).unwrap();
    let mounted = Command::new(&helper)
        .args(["s3:nas/host-7", &view, "-o", "ro,nofail"])
        .env("TIDEFS_CONFIG_DIR", place.path("config"))
        .output()
        .unwrap();
    Ended::of(mounted).ok();
    assert_eq!(fs::read(place.path("view/file")).unwrap(), content);
    place.run(&["umount", &view]).ok();

    let fleet = place.run(&["--json", "fleet", "s3:nas", "--size", "--max-age", "1h"]);
    let document: Value = serde_json::from_str(&fleet.out).unwrap();
    let found = document["volumes"].as_array().unwrap();
    assert_eq!(found.len(), 2, "{document}");
    let ours = found
        .iter()
        .find(|one| one["place"] == "s3:nas/host-7")
        .unwrap();
    assert_eq!(
        (&ours["trouble"], &ours["is_stale"]),
        (&json!([]), &json!(false)),
        "{ours}"
    );

    let log = fs::read_to_string(place.path("backup/tidefs.log")).unwrap();
    assert!(log.contains("DEBUG") || log.contains("INFO"), "{log}");
    assert!(!log.contains(&server.keys.1), "the log has the key");
}

#[test]
fn a_bucket_is_taken_over_by_a_new_server_and_the_old_one_is_refused() {
    let (Some(server), true) = (server(), can_mount()) else {
        return;
    };
    let place = Place::new();
    let _unmount = Unmount(&place);
    server.add(&place);
    let (old, new) = (place.text("backup"), place.text("new"));
    place.run(&["init"]).ok();
    place
        .run(&["store", "set", "s3", "nas", "--prefix", "h"])
        .ok();
    back_up(&place, &old, "first", b"first");
    place.run(&["-p", &new, "init"]).ok();
    place
        .run(&["-p", &new, "store", "set", "s3", "nas", "--prefix", "h"])
        .says(1, "--take-over");
    let taken = place
        .run(&[
            "-p",
            &new,
            "--json",
            "store",
            "set",
            "s3",
            "nas",
            "--prefix",
            "h",
            "--take-over",
        ])
        .json();
    assert_eq!(taken["is_archived"], true, "{taken}");
    back_up(&place, &new, "second", b"second");
    place
        .run(&["-p", &new, "check", "--external", "--read-data"])
        .ok();

    let mnt = place.text("mnt");
    place.run(&["mount", &mnt]).ok();
    fs::write(place.path("mnt/late"), b"late").unwrap();
    let waited = place.run(&["wait", "--timeout", "60"]);
    place.run(&["umount", &mnt]).ok();
    waited.says(1, "was taken over by");
    assert_eq!(read_view(&place, "s3:nas/h", "first"), b"first");
    assert_eq!(read_view(&place, "s3:nas/h", "second"), b"second");

    // The old one, on purpose, takes it back: its own late file goes to lost+found.
    let back = place
        .run(&[
            "--json",
            "store",
            "set",
            "s3",
            "nas",
            "--prefix",
            "h",
            "--take-over",
        ])
        .json();
    let aside = back
        .pointer("/take_over/set_aside")
        .unwrap()
        .as_str()
        .unwrap();
    let view = place.text("view");
    place
        .run(&["-p", aside, "mount", "--at", "now", &view])
        .ok();
    let late = fs::read(place.path("view/late"));
    place.run(&["umount", &view]).ok();
    assert_eq!(late.unwrap(), b"late");
    back_up(&place, &old, "third", b"third");
    assert_eq!(read_view(&place, "s3:nas/h", "second"), b"second");
    assert_eq!(read_view(&place, "s3:nas/h", "third"), b"third");
}
