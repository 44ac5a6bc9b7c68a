//! Directories: made while the tree is walked, and given their owner, mode and times when all below is written.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::Sender;
use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::restore::attributes::xattrs_of;
use crate::restore::dest::{dir_in, make_dir, sweep};
use crate::restore::existing::is_same;
use crate::restore::plan::{Batch, DirNode, Entered, Walked};
use crate::restore::report::Obstacle;
use crate::restore::run::Run;
use crate::restore::write::view_of;
use crate::types::escape;
use crate::volume::tree::MODE_BITS;

/// The walk of a restore.
pub(super) struct Walking<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) batches: Sender<Batch>,
}

impl Walking<'_> {
    /// Opens the directory of that name, made if it is not there. With it, whether it is new.
    fn open(
        &self,
        here: Option<&OwnedFd>,
        found: &Entered,
    ) -> Result<(Option<OwnedFd>, bool), Obstacle> {
        let Some(here) = here else {
            return Ok((None, true));
        };
        let is_dry = self.run.options.dry_run;
        match dir_in(here, &found.name) {
            Ok(dir) => {
                if !is_dry {
                    // What cannot be listed has nothing of ours to sweep.
                    let _ = sweep(&dir);
                }
                Ok((Some(dir), false))
            }
            Err(Errno::ENOENT) if is_dry => Ok((None, true)),
            Err(Errno::ENOENT) => {
                make_dir(here, &found.name).map_err(Obstacle::call("make it"))?;
                let dir = dir_in(here, &found.name).map_err(Obstacle::call("open it"))?;
                Ok((Some(dir), true))
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => Err(Obstacle::Refused(
                "something that is no directory stands there; nothing below it was restored".into(),
            )),
            Err(errno) => Err(Obstacle::call("open it")(errno)),
        }
    }
}

impl Walked for Walking<'_> {
    /// None where nothing is there and nothing is to be written.
    type Dir = Option<OwnedFd>;

    fn enter(
        &mut self,
        parent: &Arc<DirNode>,
        here: &Option<OwnedFd>,
        found: Entered,
    ) -> Option<(Arc<DirNode>, Option<OwnedFd>)> {
        match self.open(here.as_ref(), &found) {
            Ok((dir, is_new)) => {
                let node = DirNode {
                    parent: Some(Arc::clone(parent)),
                    name: Some(found.name),
                    ino: found.ino,
                    inode: found.inode,
                    state: found.state,
                    is_new,
                };
                Some((Arc::new(node), dir))
            }
            Err(obstacle) => {
                let name = found.name.to_string();
                self.run.report.failed(|| parent.path_of(&name), &obstacle);
                None
            }
        }
    }

    fn reenter(&mut self, node: &Arc<DirNode>) -> Option<Option<OwnedFd>> {
        let Some(writer) = &self.run.writer else {
            return Some(None);
        };
        if self.run.options.dry_run && node.is_new {
            return Some(None);
        }
        match writer.dest.dir(node.names().into_iter()) {
            Ok(dir) => Some(Some(dir)),
            Err(errno) => {
                let obstacle = Obstacle::call("open it again")(errno);
                self.run.report.failed(|| node.path(), &obstacle);
                None
            }
        }
    }

    fn failed(&mut self, dir: &DirNode, name: &[u8], why: &Obstacle) {
        let path = || match name {
            [] => dir.path(),
            name => dir.path_of(&escape(name)),
        };
        self.run.report.failed(path, why);
    }

    fn batch(&mut self, batch: Batch) -> bool {
        self.run.count(&batch);
        // Nobody takes it when the restore has ended.
        self.batches.send(batch).is_ok()
    }

    fn goes_on(&self) -> bool {
        !self.run.is_stopped()
    }
}

impl Run<'_> {
    /// Gives a directory whose content is complete what it has in the volume.
    pub(super) fn finish(&self, node: &DirNode) {
        match self.try_finish(node) {
            Ok(Finished::Is) => self.report.skipped(),
            Ok(Finished::Made(lacks)) => {
                self.report.restored(0);
                self.report.stripped(|| node.path(), &lacks);
            }
            Err(obstacle) => self.report.failed(|| node.path(), &obstacle),
        }
    }

    fn try_finish(&self, node: &DirNode) -> Result<Finished, Obstacle> {
        let Some(writer) = self
            .writer
            .as_ref()
            .filter(|_| !(self.options.dry_run && node.is_new))
        else {
            return Ok(Finished::Made(Vec::new()));
        };
        let dir = writer.dest.dir(node.names().into_iter());
        let dir = dir.map_err(Obstacle::call("open it"))?;
        let xattrs = xattrs_of(&view_of(self.tree, node.state), node.ino)?;
        if !node.is_new {
            let found = fstat(&dir).map_err(Obstacle::call("look at it"))?;
            let has_all = crate::restore::attributes::has_xattrs(&dir, &xattrs);
            if is_same(&found, &node.inode, self.rights) && has_all {
                return Ok(Finished::Is);
            }
        }
        if self.options.dry_run {
            return Ok(Finished::Made(Vec::new()));
        }
        let lacks = self.rights.give(&dir, &node.inode, &xattrs)?;
        Ok(Finished::Made(lacks))
    }

    /// The destination itself. One that had something in it before keeps its owner and mode: only where these are the
    /// volume's already does it get the time as well.
    pub(super) fn finish_root(&self, node: &DirNode, is_ours: bool) {
        let is_its_own = || {
            let dest = self.writer.as_ref().map(|writer| writer.dest)?;
            let found = fstat(dest.root()).ok()?;
            let mode = found.st_mode & u32::from(MODE_BITS);
            let owner = (found.st_uid, found.st_gid) == (node.inode.uid, node.inode.gid);
            Some(owner && mode == u32::from(self.rights.mode_of(&node.inode)))
        };
        if is_ours || is_its_own() == Some(true) {
            self.finish(node);
        }
    }
}

enum Finished {
    /// It was so already.
    Is,
    /// What it does not have.
    Made(Vec<String>),
}
