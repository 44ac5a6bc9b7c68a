use super::*;

const MOUNTS: &str = "\
28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 28 0:40 / /mnt/nas rw,relatime - nfs4 nas:/export rw,vers=4.2,hard,proto=tcp
41 28 0:41 / /mnt/soft rw,relatime - nfs nas:/export rw,vers=3,soft,proto=tcp,timeo=10
42 28 0:42 / /mnt/softerr rw,relatime - nfs4 nas:/export rw,softerr,proto=udp,noac
43 28 0:43 / /mnt/smb rw,relatime - cifs //nas/share rw,vers=3.1.1,cache=loose,soft,nostrictsync
44 28 0:44 / /mnt/s3 rw - fuse mountpoint-s3 rw,user_id=0
45 28 0:45 / /mnt/ssh rw - fuse.sshfs host:/ rw,user_id=0
46 28 0:46 / /mnt/ours rw - fuse.tidefs tidefs:/backup rw
47 28 0:47 / /mnt/ro ro,relatime - ext4 /dev/vdb rw
48 28 0:48 / /mnt/usb rw,relatime - ext4 /dev/vdc ro
49 28 0:49 / /mnt/auto rw - autofs systemd-1 rw
50 28 0:50 / /tmp rw - tmpfs tmpfs rw
51 28 0:51 / /mnt/disk rw - xfs /dev/vdd rw
";

fn judged(path: &str, fstab: &str) -> Assessment {
    let path = Path::new(path);
    judge(
        path,
        mountinfo::holding(MOUNTS.as_bytes(), path).unwrap(),
        (Path::new(FSTAB), fstab.as_bytes()),
    )
}

fn causes(found: &Assessment) -> Vec<RefusalCause> {
    found.refusals.iter().map(|refusal| refusal.cause).collect()
}

#[track_caller]
fn warns(found: &Assessment, part: &str) {
    assert!(
        found.warnings.iter().any(|warning| warning.contains(part)),
        "no '{part}' in {:?}",
        found.warnings
    );
}

#[test]
fn a_good_nfs_mount_is_taken_without_a_word() {
    let found = judged("/mnt/nas/backup", "nas:/export /mnt/nas nfs hard 0 0");
    assert_eq!((found.refusals.len(), found.warnings.len()), (0, 0));
    assert!(found.fstab_expects_mount);
    assert_eq!(
        (found.kind, found.file_system.as_str()),
        (MountKind::Nfs, "nfs4")
    );
    assert_eq!(
        (found.mount_point.as_path(), found.source.as_str()),
        (Path::new("/mnt/nas"), "nas:/export")
    );
    assert!(found.options.iter().any(|option| option == "vers=4.2"));
}

#[test]
fn what_fstab_wants_mounted_and_is_not_is_refused_whoever_insists() {
    let fstab = "nas:/export /srv/nas nfs hard,noauto 0 0";
    for path in ["/srv/nas", "/srv/nas/backup/deep"] {
        let found = judged(path, fstab);
        assert_eq!(causes(&found), [RefusalCause::NotMounted], "{path}");
        assert_eq!(
            found.refusal(true).unwrap().text,
            "/srv/nas is in /etc/fstab but not mounted: mount it first (mount /srv/nas); nothing was written"
        );
    }
    assert_eq!(causes(&judged("/srv/other", fstab)), []);
}

#[test]
fn a_mount_of_ones_own_below_what_fstab_wants_is_ones_own_business() {
    let fstab = "/dev/vdz /mnt ext4 defaults 0 0";
    assert_eq!(causes(&judged("/mnt/disk/backup", fstab)), []);
    assert_eq!(
        causes(&judged("/mnt/none", fstab)),
        [RefusalCause::NotMounted]
    );
}

#[test]
fn an_automount_that_did_not_mount_is_not_mounted() {
    let fstab = "nas:/export /mnt/auto nfs x-systemd.automount 0 0";
    assert_eq!(
        causes(&judged("/mnt/auto/x", fstab)),
        [RefusalCause::NotMounted]
    );
}

#[test]
fn another_file_system_than_fstab_wants_is_named() {
    let found = judged("/mnt/disk", "nas:/export /mnt/disk nfs4 hard 0 0");
    assert_eq!(causes(&found), []);
    warns(&found, "wants nfs4 (nas:/export)");
}

#[test]
fn soft_nfs_is_refused_with_the_way_out_unless_forced() {
    for (path, option) in [("/mnt/soft", "soft"), ("/mnt/softerr", "softerr")] {
        let found = judged(path, "");
        assert_eq!(causes(&found), [RefusalCause::Soft]);
        let text = &found.refusal(false).unwrap().text;
        for part in [
            &format!("NFS with {option}:"),
            "Put hard in its place",
            "--force",
        ] {
            assert!(text.contains(part), "no '{part}' in {text}");
        }
        assert_eq!(found.refusal(true), None);
    }
    let found = judged("/mnt/softerr", "");
    warns(&found, "proto=udp");
    warns(&found, "noac");
}

#[test]
fn smb_options_that_lose_bytes_are_warned_of() {
    let found = judged("/mnt/smb", "");
    assert_eq!((found.kind, causes(&found)), (MountKind::Cifs, vec![]));
    for option in ["soft", "cache=loose", "nostrictsync"] {
        warns(&found, &format!("with {option}:"));
    }
}

#[test]
fn a_mounted_bucket_is_named_with_its_program() {
    warns(&judged("/mnt/s3/x", ""), "mounted by mountpoint-s3");
    warns(&judged("/mnt/ssh", ""), "FUSE file system (fuse.sshfs)");
}

#[test]
fn our_own_mounts_and_read_only_ones_are_refused_whoever_insists() {
    for (path, cause) in [
        ("/mnt/ours", RefusalCause::Ours),
        ("/mnt/ro", RefusalCause::ReadOnly),
        ("/mnt/usb", RefusalCause::ReadOnly),
    ] {
        let found = judged(path, "");
        assert_eq!(causes(&found), [cause], "{path}");
        assert!(found.refusal(true).is_some());
    }
}

#[test]
fn a_place_that_ends_with_the_machine_is_warned_of() {
    warns(&judged("/tmp/x", ""), "memory of this machine");
    warns(&judged("/mnt/plain", ""), "the system's own disk");
    assert_eq!(judged("/srv/plain", "").warnings.len(), 0);
}

#[test]
fn a_missing_directory_is_judged_by_what_is_above_it_and_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let fstab = dir.path().join("fstab");
    let place = real.canonicalize().unwrap();
    fs::write(&fstab, format!("nas:/e {} nfs hard 0 0\n", place.display())).unwrap();
    let found = assess(&link.join("a/b"), &fstab);
    assert_eq!(
        causes(&found),
        [RefusalCause::NotMounted],
        "through the link: {found:?}"
    );
    assert!(!real.join("a").exists());
    assert_eq!(causes(&assess(&real, &dir.path().join("no-fstab"))), []);
    warns(&assess(&real, dir.path()), "cannot be read");
}
