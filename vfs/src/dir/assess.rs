//! Whether a directory is a good place for a volume: judged before anything is written there, from what the kernel and
//! fstab say about the mount it is in.
//!
//! What cannot be seen from outside is tried out by the probe; what is told by no mount option (whose volume it is) by
//! the sentinel. Nothing is created here, the directory itself least of all.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs};

use crate::volume::MountKind;

use super::mountinfo::{self, Mount, Wanted};

/// Where the operator says what is to be mounted.
pub const FSTAB: &str = "/etc/fstab";
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// What our own mounts say they are.
const OURS: &str = "fuse.tidefs";

/// What a directory stands on, and whether it will do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assessment {
    /// What sort of place it is.
    pub kind: MountKind,
    /// Where the file system is mounted that the directory is in.
    pub mount_point: PathBuf,
    /// Its name, as the kernel has it: `ext4`, `nfs4`, `fuse.sshfs`.
    pub file_system: String,
    /// What is mounted: a device, `server:/export`.
    pub source: String,
    /// The options it is mounted with.
    pub options: Vec<String>,
    /// A line of fstab brings a mount here, or to a directory above.
    pub fstab_expects_mount: bool,
    /// Why it is not to be used.
    pub refusals: Vec<Refusal>,
    /// What the operator should know, in whole sentences.
    pub warnings: Vec<String>,
}

/// Why a directory is not to be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The sort of reason.
    pub cause: RefusalCause,
    /// The reason, and what to do: a whole sentence.
    pub text: String,
}

/// Sorts of reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RefusalCause {
    /// What fstab wants mounted there is not.
    NotMounted,
    /// The server of a FUSE mount is gone.
    Dead,
    /// It is mounted read-only.
    ReadOnly,
    /// NFS that gives up: it loses what programs believe was written.
    Soft,
    /// One of our own mounts.
    Ours,
}

impl RefusalCause {
    /// Whether it makes sense to go on all the same, for somebody who knows what it costs. Writing under a mount point,
    /// or where nothing can be written, never does.
    pub fn can_be_forced(self) -> bool {
        self == RefusalCause::Soft
    }
}

impl Assessment {
    /// The first reason that still stands when the operator insists (`forced`), or does not.
    pub fn refusal(&self, forced: bool) -> Option<&Refusal> {
        self.refusals
            .iter()
            .find(|refusal| !(forced && refusal.cause.can_be_forced()))
    }
}

/// Looks at `path` as a place for a volume; `fstab` is [`FSTAB`], unless another says what is to be mounted.
///
/// Resolves the path and wakes an automount, so that it may wait for as long as the mount does.
pub fn assess(path: &Path, fstab: &Path) -> Assessment {
    let mut unread = Vec::new();
    let wanted = match fs::read(fstab) {
        Ok(text) => text,
        // No line, no wish: a container has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let shown = fstab.display();
            unread.push(format!(
                "{shown} cannot be read ({error}): whether something is to be mounted here is not known."
            ));
            Vec::new()
        }
    };
    let touched = fs::metadata(path);
    let resolved = resolve(path);
    let mount = fs::read(MOUNTINFO)
        .ok()
        .and_then(|text| mountinfo::holding(&text, &resolved));
    let mut found = match mount {
        Some(mount) => judge(&resolved, mount, (fstab, &wanted)),
        None => Assessment {
            kind: kind_by_magic(&resolved),
            ..judge(&resolved, Mount::unknown(), (fstab, &wanted))
        },
    };
    if let Err(error) = touched
        && error.raw_os_error() == Some(Errno::ENOTCONN as i32)
    {
        found.refuse(
            RefusalCause::Dead,
            format!(
                "{} is a dead mount, its server process is gone: unmount it (umount -l {0}) and mount it again; nothing was written",
                found.mount_point.display()
            ),
        );
    }
    found.warnings.append(&mut unread);
    found
}

/// Without symbolic links, as far as it exists: what is missing at the end is named as it was.
fn resolve(path: &Path) -> PathBuf {
    let mut missing = PathBuf::new();
    for above in path.ancestors() {
        if let Ok(found) = fs::canonicalize(above) {
            return found.join(missing).components().collect();
        }
        if let Some(name) = above.file_name() {
            missing = Path::new(name).join(missing);
        }
    }
    path.to_owned()
}

fn kind_by_magic(path: &Path) -> MountKind {
    match statfs(path).map(|stat| stat.filesystem_type()) {
        Ok(NFS_SUPER_MAGIC) => MountKind::Nfs,
        Ok(SMB_SUPER_MAGIC) => MountKind::Cifs,
        Ok(FUSE_SUPER_MAGIC) => MountKind::Fuse,
        _ => MountKind::Disk,
    }
}

/// The verdict on `path`, which has no symbolic links in it and is in `mount`.
fn judge(path: &Path, mount: Mount, (fstab, lines): (&Path, &[u8])) -> Assessment {
    let wanted = mountinfo::wanted(lines, path);
    let fstab = fstab.display();
    let mut found = Assessment {
        kind: mountinfo::kind(&mount.file_system),
        mount_point: mount.place.clone(),
        file_system: mount.file_system.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        fstab_expects_mount: wanted.is_some(),
        refusals: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(wanted) = wanted {
        found.compare(&wanted, &fstab);
    } else if is_customary_mount_point(path) && mount.place == Path::new("/") {
        found.warn(format!(
            "{} is on the system's own disk, and {fstab} mounts nothing there: if a disk or share was to be there, mount it first.",
            path.display()
        ));
    }
    if mount.file_system == OURS {
        found.refuse(
            RefusalCause::Ours,
            format!(
                "{} is a mount of tidefs itself ({}): name the volume behind it; nothing was written",
                mount.place.display(),
                mount.source
            ),
        );
    }
    if mount.has("ro") {
        found.refuse(
            RefusalCause::ReadOnly,
            format!(
                "{} is mounted read-only: mount it with rw, and look for disk errors if it was so before (dmesg)",
                mount.place.display()
            ),
        );
    }
    match found.kind {
        MountKind::Nfs => found.judge_nfs(&mount),
        MountKind::Cifs => found.judge_cifs(&mount),
        MountKind::Fuse => found.judge_fuse(&mount),
        _ => found.judge_disk(&mount),
    }
    found
}

impl Assessment {
    fn refuse(&mut self, cause: RefusalCause, text: String) {
        self.refusals.push(Refusal { cause, text });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Each of the options that is set is told with what it does.
    fn warn_of(&mut self, mount: &Mount, options: &[(&str, &str)]) {
        for (option, effect) in options {
            if mount.has(option) {
                self.warn(format!(
                    "{} is mounted with {option}: {effect}",
                    mount.place.display()
                ));
            }
        }
    }

    /// What is mounted with what fstab wants mounted.
    fn compare(&mut self, wanted: &Wanted, fstab: &dyn Display) {
        let place = wanted.place.display();
        // A mount further down is somebody's own, and not fstab's business.
        let is_above = wanted.place.starts_with(&self.mount_point);
        if is_above && wanted.place != self.mount_point {
            self.refuse(
                RefusalCause::NotMounted,
                format!("{place} is in {fstab} but not mounted: mount it first (mount {place}); nothing was written"),
            );
        } else if self.file_system == "autofs" {
            self.refuse(
                RefusalCause::NotMounted,
                format!("{place} is an automount that does not mount: find out why (mount {place}); nothing was written"),
            );
        }
        let expected = mountinfo::kind(&wanted.file_system);
        if wanted.place == self.mount_point
            && matches!(expected, MountKind::Nfs | MountKind::Cifs)
            && expected != self.kind
            && self.file_system != "autofs"
        {
            self.warn(format!(
                "{place} is {} ({}), where {fstab} wants {} ({}): make sure that this is meant.",
                self.file_system, self.source, wanted.file_system, wanted.source
            ));
        }
    }

    fn judge_nfs(&mut self, mount: &Mount) {
        if let Some(soft) = ["soft", "softerr"].into_iter().find(|soft| mount.has(soft)) {
            self.refuse(
                RefusalCause::Soft,
                format!(
                    "{} is NFS with {soft}: when the server is slow it gives up what programs believe was written, and \
                     corrupts silently. Put hard in its place (in fstab, then umount and mount): a hang is isolated and \
                     holds up nothing here. Or go on as it is with --force; nothing was written",
                    mount.place.display()
                ),
            );
        }
        self.warn_of(
            mount,
            &[
                ("proto=udp", "fast links corrupt NFS over UDP silently. Use proto=tcp."),
                ("softreval", "while the server is away old answers count as new. Use nosoftreval."),
                ("nocto", "what another machine wrote may not be seen when it is opened. Leave it out."),
                ("noac", "every look asks the server, which is slow, and a volume has one writer only. Leave it out."),
                ("vers=2", "files of at most 2 GiB. Use vers=4.2."),
            ],
        );
    }

    fn judge_cifs(&mut self, mount: &Mount) {
        self.warn_of(
            mount,
            &[
                ("soft", "(the default) a server that is slow for a while makes errors, and uploads are begun anew. hard waits, \
                          and a hang is isolated here."),
                ("cache=loose", "reads may be older than what is on the server. Use cache=strict."),
                ("nostrictsync", "fsync does not reach the server's disk: its power cut loses what counts as stored. Use strictsync."),
                ("noserverino", "file numbers change, and the volume looks as if it were mounted anew. Use serverino."),
                ("vers=1.0", "no encryption, and slow. Use vers=3.1.1."),
            ],
        );
    }

    fn judge_fuse(&mut self, mount: &Mount) {
        if let Some(warning) = bucket_warning(&mount.file_system, &mount.source) {
            self.warn(warning);
        } else if mount.file_system != OURS && mount.file_system != "fuseblk" {
            self.warn(format!(
                "{} is a FUSE file system ({}): whether fsync and rename are what they should be is its daemon's choice, and \
                 an fsync that is only accepted cannot be told from a good one.",
                mount.place.display(),
                mount.file_system
            ));
        }
    }

    fn judge_disk(&mut self, mount: &Mount) {
        let place = mount.place.display();
        match mount.file_system.as_str() {
            "tmpfs" | "ramfs" | "devtmpfs" => self.warn(format!(
                "{place} is in the memory of this machine: all of it is gone when the machine is off."
            )),
            "overlay" | "aufs" => self.warn(format!(
                "{place} is the layer of a container, and ends with it: use a volume that is mounted into the container."
            )),
            "vfat" | "msdos" | "exfat" => self.warn(format!(
                "{place} is {}: it has no journal, so that a power cut can damage what was there before.",
                mount.file_system
            )),
            _ => {}
        }
        self.warn_of(
            mount,
            &[
                (
                    "nobarrier",
                    "a power cut may take back what was synced. Use barrier.",
                ),
                (
                    "barrier=0",
                    "a power cut may take back what was synced. Use barrier=1.",
                ),
            ],
        );
    }
}

/// What to know of the mount of a bucket, if it is one.
pub(super) fn bucket_warning(file_system: &str, source: &str) -> Option<String> {
    let program = mountinfo::bucket_mount(file_system, source)?;
    Some(format!(
        "This is a bucket, mounted by {program}: a rename copies and deletes, and fsync may be a mere wish. Use the bucket \
         itself (s3:) instead."
    ))
}

/// Where people put mount points, and a directory without a mount is most likely a mistake.
fn is_customary_mount_point(path: &Path) -> bool {
    ["/mnt", "/media", "/run/media", "/net"]
        .iter()
        .any(|above| path.starts_with(above))
}

#[cfg(test)]
mod tests;
