//! The buckets of a machine: who may read their keys, where keys are never seen, and the whole of it against a real
//! server (where `TIDEFS_TEST_S3` names one: see `scripts/ceph`).

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidefs");
const SECRET: &str = "sk-never-to-be-seen-0123456789abcdef";

struct Place {
    dir: TempDir,
}

#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    #[track_caller]
    fn says(&self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(part), "no '{part}' in {self:?}");
    }

    #[track_caller]
    fn hides(&self, secret: &str) {
        assert!(
            !self.out.contains(secret) && !self.err.contains(secret),
            "{self:?}"
        );
    }
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mnt", "view", "ext"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn file(&self) -> PathBuf {
        self.path("config/buckets.json")
    }

    /// Without any keys in its environment, and with a log that says everything.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("TIDEFS_PATH", self.path("backup"))
            .env("TIDEFS_CONFIG_DIR", self.path("config"))
            .env("TIDEFS_LOG", "debug")
            .env("HOME", self.dir.path())
            .env_remove("TIDEFS_S3_SECRET")
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env_remove("AWS_SESSION_TOKEN")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    fn with_secret(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        Ended::of(command.env("TIDEFS_S3_SECRET", SECRET).output().unwrap())
    }

    /// A bucket of nobody's, at an address where nothing listens.
    fn add(&self, label: &str) -> Value {
        self.with_secret(&[
            "--json",
            "bucket",
            "add",
            "--label",
            label,
            "--type",
            "ceph",
            "--bucket",
            "b",
            "--endpoint",
            "http://127.0.0.1:9",
            "--access-key",
            "AK1",
            "--no-test",
        ])
        .json()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut document: Value = serde_json::from_slice(&fs::read(self.file()).unwrap()).unwrap();
        change(&mut document);
        fs::write(self.file(), document.to_string()).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_kept_where_only_their_owner_reads_and_shown_only_on_request() {
    let place = Place::new();
    let added = place.add("nas");
    assert!(!added.to_string().contains(SECRET), "{added}");
    assert_eq!(
        (mode(&place.file()), mode(&place.path("config"))),
        (0o600, 0o700)
    );
    assert!(fs::read_to_string(place.file()).unwrap().contains(SECRET));
    for args in [
        &["bucket", "list"][..],
        &["--json", "bucket", "list"],
        &["bucket", "show", "nas"],
        &["--json", "bucket", "show", "nas"],
        &[
            "bucket",
            "update",
            "nas",
            "--notes",
            "second floor",
            "--no-test",
        ],
        &[
            "--json",
            "bucket",
            "update",
            "nas",
            "--label",
            "nas2",
            "--no-test",
        ],
    ] {
        let ended = place.run(args);
        ended.hides(SECRET);
        assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
    }
    let shown = place
        .run(&["--json", "bucket", "show", "nas2", "--reveal"])
        .json();
    assert_eq!(
        shown.pointer("/s3/credentials/static/secret"),
        Some(&json!(SECRET))
    );
    assert_eq!(shown["notes"], "second floor");
    let text = place.run(&["bucket", "show", "nas2", "--reveal"]).ok();
    assert!(text.contains(SECRET), "{text}");
    // The same bucket under its id, as settings name it.
    let id = added["bucket"]["id"].as_str().unwrap();
    assert_eq!(
        place.run(&["--json", "bucket", "show", id]).json()["label"],
        "nas2"
    );
}

#[test]
fn a_secret_comes_from_the_environment_a_file_or_a_pipe_and_never_from_the_command_line() {
    let place = Place::new();
    let common = [
        "bucket",
        "add",
        "--bucket",
        "b",
        "--endpoint",
        "http://127.0.0.1:9",
        "--access-key",
        "AK1",
        "--no-test",
    ];
    fn add<'a>(common: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [common, more].concat()
    }
    let key = place.path("key");
    fs::write(&key, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let file = key.to_str().unwrap();
    let refused = place.run(&add(&common, &["--label", "a", "--secret-file", file]));
    refused.says(1, "chmod 600");
    refused.hides(SECRET);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    place
        .run(&add(&common, &["--label", "a", "--secret-file", file]))
        .ok();

    let mut child = place
        .command(&add(
            &common,
            &["--label", "b", "--secret-file", "/dev/stdin"],
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(SECRET.as_bytes())
        .unwrap();
    Ended::of(child.wait_with_output().unwrap()).ok();

    let pair = Ended::of(
        place
            .command(&add(&common, &["--label", "c"]))
            .env("AWS_ACCESS_KEY_ID", "OTHER")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .output()
            .unwrap(),
    );
    pair.says(2, "another key than AWS_ACCESS_KEY_ID");
    pair.hides(SECRET);
    for label in ["a", "b"] {
        let shown = place
            .run(&["--json", "bucket", "show", label, "--reveal"])
            .json();
        assert_eq!(
            shown.pointer("/s3/credentials/static/secret"),
            Some(&json!(SECRET))
        );
    }
    for option in ["--secret", "--secret-key", "--secret-access-key"] {
        assert_eq!(
            place
                .run(&add(&common, &["--label", "d", option, "x"]))
                .code,
            2
        );
    }
}

#[test]
fn a_secret_that_is_typed_is_not_echoed() {
    let place = Place::new();
    let typed = format!(
        "{PROGRAM} bucket add --label nas --bucket b --endpoint http://127.0.0.1:9 --access-key AK1 --no-test"
    );
    let script = Command::new("script")
        .args(["-qec", &typed, "/dev/null"])
        .env("TIDEFS_CONFIG_DIR", place.path("config"))
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env_remove("TIDEFS_S3_SECRET")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut script) = script else {
        eprintln!("no script(1) here: not tried");
        return;
    };
    let mut shown = Vec::new();
    let mut out = script.stdout.take().unwrap();
    let mut letter = [0];
    while !shown.ends_with(b"AK1: ") {
        assert_eq!(
            out.read(&mut letter).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&shown)
        );
        shown.push(letter[0]);
    }
    let mut input = script.stdin.take().unwrap();
    input
        .write_all(format!("wrong\x15{SECRET}x\x7f\r").as_bytes())
        .unwrap();
    out.read_to_end(&mut shown).unwrap();
    drop(input);
    assert!(
        script.wait().unwrap().success(),
        "{}",
        String::from_utf8_lossy(&shown)
    );
    let shown = String::from_utf8_lossy(&shown);
    assert!(
        !shown.contains("sk-") && !shown.contains("wrong"),
        "{shown}"
    );
    let kept = place
        .run(&["--json", "bucket", "show", "nas", "--reveal"])
        .json();
    assert_eq!(
        kept.pointer("/s3/credentials/static/secret"),
        Some(&json!(SECRET))
    );
}

#[test]
fn a_server_that_does_not_answer_is_exit_code_5_and_nobody_sees_the_key() {
    let place = Place::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap());
    place.add("nas");
    place
        .run(&[
            "bucket",
            "update",
            "nas",
            "--endpoint",
            &endpoint,
            "--no-test",
        ])
        .ok();
    let mut child = place
        .command(&["bucket", "test", "nas"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is in the middle of it when the connection is there.
    let (connection, _) = server.accept().unwrap();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    for name in ["cmdline", "environ", "comm"] {
        let bytes = fs::read(process.join(name)).unwrap();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!shown.contains(SECRET), "{name}: {shown}");
    }
    drop(connection);
    drop(server);
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(5), "{err}");
    assert!(!err.contains(SECRET), "{err}");
    // And the test of what is to be added keeps it out of the list.
    let refused = place.with_secret(&[
        "bucket",
        "add",
        "--label",
        "other",
        "--bucket",
        "b",
        "--endpoint",
        &endpoint,
        "--access-key",
        "AK1",
    ]);
    assert_eq!(refused.code, 5, "{refused:?}");
    refused.hides(SECRET);
    assert_eq!(place.run(&["bucket", "show", "other"]).code, 1);
}

#[test]
fn a_bucket_in_use_is_not_removed_and_a_stale_user_does_not_keep_it() {
    let place = Place::new();
    let id = place.add("nas")["bucket"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    place.run(&["init"]).ok();
    let backup = place.text("backup");
    let settings = place.path("backup/settings.json");
    let used =
        json!([{ "path": backup, "prefix": "p", "store": "00112233445566778899aabbccddeeff" }]);
    place.edit(|document| document["buckets"][0]["used_by"] = used.clone());
    let with_store = json!({ "store": {
        "kind": "s3", "bucket": id, "prefix": "p", "store": "00112233445566778899aabbccddeeff",
    }});
    fs::write(&settings, with_store.to_string()).unwrap();
    for args in [
        &["bucket", "remove", "nas"][..],
        &["bucket", "remove", "nas", "--force"],
    ] {
        let refused = place.run(args);
        refused.says(1, &backup);
        refused.says(1, "in use");
    }
    // A backup path whose disk is away may still use it.
    place.edit(|document| document["buckets"][0]["used_by"][0]["path"] = json!("/nowhere/at/all"));
    place
        .run(&["bucket", "remove", "nas"])
        .says(1, "cannot be looked at");
    // One that says otherwise does not.
    place.edit(|document| document["buckets"][0]["used_by"] = used);
    fs::write(&settings, "{}").unwrap();
    place.run(&["bucket", "remove", "nas"]).ok();
    assert!(!fs::read_to_string(place.file()).unwrap().contains(SECRET));
    place
        .run(&["bucket", "show", "nas"])
        .says(1, "no bucket 'nas'");
}

#[test]
fn a_damaged_list_is_named_and_left_as_it_is() {
    let place = Place::new();
    place.add("nas");
    let cut = fs::read_to_string(place.file())
        .unwrap()
        .replacen("\"label\"", "\"lapel\"", 1);
    fs::write(place.file(), &cut).unwrap();
    let add = [
        "bucket",
        "add",
        "--label",
        "b",
        "--bucket",
        "b",
        "--endpoint",
        "http://127.0.0.1:9",
        "--access-key",
        "AK1",
        "--no-test",
    ];
    for args in [&["bucket", "list"][..], &["bucket", "remove", "nas"], &add] {
        let refused = place.with_secret(args);
        refused.says(1, "buckets.json is damaged");
        refused.hides(SECRET);
    }
    assert_eq!(fs::read_to_string(place.file()).unwrap(), cut);
    // What needs no bucket goes on.
    place.run(&["init"]).ok();
    place.run(&["store", "set", "dir", &place.text("ext")]).ok();
}

#[test]
fn each_type_fills_in_what_is_usual_with_it() {
    let place = Place::new();
    let add = |label: &str, more: &[&str]| {
        let common = [
            "--json",
            "bucket",
            "add",
            "--label",
            label,
            "--bucket",
            "b",
            "--access-key",
            "AK1",
            "--no-test",
        ];
        place.with_secret(&[&common[..], more].concat())
    };
    let s3 = |ended: Ended| ended.json()["bucket"]["s3"].clone();
    let aws = s3(add("aws", &["--type", "aws", "--region", "eu-central-1"]));
    assert_eq!(aws["endpoint"], "https://s3.eu-central-1.amazonaws.com");
    assert_eq!(aws["addressing"], "virtual-host");
    add("none", &["--type", "aws"]).says(2, "which region");
    let garage = s3(add(
        "garage",
        &["--type", "garage", "--endpoint", "http://127.0.0.1:3900/"],
    ));
    assert_eq!(
        (&garage["region"], &garage["addressing"]),
        (&json!("garage"), &json!("path"))
    );
    assert_eq!(garage["endpoint"], "http://127.0.0.1:3900");
    add("none", &["--type", "minio"]).says(2, "--endpoint");
    add("none", &["--type", "swift"]).says(2, "known are aws");
    add("aws", &["--type", "aws", "--region", "x"]).says(1, "already");
}

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
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
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
