//! Looking for newer epochs of an external volume that is mounted, as long as it is.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::fuse::Notifier;
use crate::types::Ino;
use crate::volume::follow::FollowTree;

/// How often, unless the mount says otherwise: an epoch closes every five minutes.
pub const POLL_DEFAULT: Duration = Duration::from_secs(30);

/// A thread that looks. It ends when this is dropped, or soon after, if it is waiting for the volume just then.
#[derive(Debug)]
pub struct Follower {
    _stop: Sender<()>,
}

impl Follower {
    /// Looks every `interval`, and tells the kernel what it remembers wrongly by then.
    pub fn start(tree: Arc<FollowTree>, kernel: Notifier, interval: Duration) -> Result<Follower> {
        let (stop, stopped) = bounded::<()>(0);
        thread::Builder::new()
            .name("follow".into())
            .spawn(move || {
                let mut complaint = None;
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    let failure = step(&tree, &kernel).err().map(|error| error.chain());
                    // Once, not every half minute of an outage.
                    if failure != complaint {
                        if let Some(reason) = &failure {
                            tracing::warn!(reason, "the view stays as it is");
                        } else {
                            tracing::info!("the external volume answers again");
                        }
                        complaint = failure;
                    }
                }
            })
            .map_err(Error::io("start", "the thread that follows"))?;
        Ok(Follower { _stop: stop })
    }
}

fn step(tree: &FollowTree, kernel: &Notifier) -> Result<()> {
    let Some(names) = tree.advance()? else {
        return Ok(());
    };
    tracing::info!(epoch = %tree.epoch(), "a newer epoch is shown");
    for name in names {
        kernel.invalidate_entry(Ino::ROOT, &name)?;
    }
    kernel.invalidate_inode(Ino::ROOT)
}
