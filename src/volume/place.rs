//! Whether a directory may become the external volume: judged before anything is written there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vfs::dir::{Assessment, FSTAB, assess};

use crate::error::{Error, Result};

/// How a place is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look<'a> {
    /// Says what is to be mounted where; `None`: `/etc/fstab`.
    pub fstab: Option<&'a Path>,
    /// The operator insists.
    pub forced: bool,
}

/// What the directory stands on. Refused if that will not do.
pub fn admit(path: &Path, look: Look<'_>) -> Result<Assessment> {
    let found = assess(path, look.fstab.unwrap_or(Path::new(FSTAB)));
    match found.refusal(look.forced) {
        Some(refusal) => Err(Error::Refused(refusal.text.clone())),
        None => Ok(found),
    }
}

/// What is to be said to somebody who takes it all the same, or whom it concerns: forced refusals, then warnings. Also
/// that it shares its file system with the backup path, whose loss it is there for.
pub fn concerns(path: &Path, found: &Assessment, root: Option<&Path>) -> Vec<String> {
    let mut concerns: Vec<String> = found
        .refusals
        .iter()
        .map(|refusal| refusal.text.clone())
        .collect();
    concerns.extend(found.warnings.iter().cloned());
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    if let Some(root) = root
        && device(path).is_some_and(|there| device(root) == Some(there))
    {
        concerns.push(format!(
            "It shares its file system with the backup path {}: what takes that disk takes both.",
            root.display()
        ));
    }
    concerns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_to_be_a_mount_point_is_refused_and_one_on_the_same_disk_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (nas, fstab) = (root.join("nas"), root.join("fstab"));
        fs::create_dir(&nas).unwrap();
        fs::write(&fstab, format!("nas:/x {} nfs hard 0 0", nas.display())).unwrap();
        let look = Look {
            fstab: Some(&fstab),
            forced: true,
        };
        let error = admit(&nas.join("deep"), look).unwrap_err();
        assert!(error.to_string().contains("but not mounted"), "{error}");
        let found = admit(&root, look).unwrap();
        let told = concerns(&root, &found, Some(&nas)).join(" ");
        assert!(told.contains("shares its file system"), "{told}");
    }
}
