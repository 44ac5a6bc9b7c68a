//! The buckets of a machine: who may read their keys, where keys are never seen, and the whole of it against a real
//! server (where `TIDEFS_TEST_S3` names one: see `scripts/ceph`).

#![allow(
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

#[path = "buckets/place.rs"]
mod place;
#[path = "buckets/volumes.rs"]
mod volumes;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use place::{Ended, PROGRAM, Place, SECRET};

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
