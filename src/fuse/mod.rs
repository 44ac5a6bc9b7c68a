//! A tree of files as a FUSE mount: the only room that knows fuser.
//!
//! [`mount`] puts any [`Tree`](crate::volume::tree::Tree) on a directory; [`Mounted`] is the mount,
//! to wait for and to end; [`Notifier`] is the door for changes that do not come through the mount.
//! What files are and what may be done to them is decided in the tree; [`BridgeTree`] makes one of the raw
//! objects of an external volume. What may not enter: engine
//! locks, the network, policy about volumes. What may not leave: fuser's types.
//!
//! Not offered, so that nothing looks enforced that is not: POSIX ACLs (`EOPNOTSUPP`), locks between
//! machines (the kernel's own `flock` and `fcntl` locks work), `O_TMPFILE`, NFS export.

mod adapter;
mod attach;
mod bridge;
mod convert;
mod dirs;
mod guard;
mod mounts;
mod notify;
mod opens;
mod options;
mod reply;
mod session;

pub use bridge::BridgeTree;
pub use notify::Notifier;
pub use options::{Lifetimes, MountOptions, OptionList};
pub use session::{Mounted, mount};
