//! The life of a process that serves: it opens, mounts, answers its control socket, drains and ends.
//!
//! In reading order: `failure` (how anything ends that was not well), `protocol` (what is said through the
//! socket), `operations` (what is asked of an open volume, with a daemon or without), `ops` and `scanning` (what takes long), `watch` (sources whose changes are scanned as they come), `opening`, `control` and `client`
//! (the two ends of the socket), `serve` (from ready to gone), `door` (changes that do not come through the mount), `signals`, `arenas`, `background`, `log`, `mounts` and `follow` (the newest of an external volume).
//! What was typed and how it is shown may not enter: that is `cli/`.

pub mod arenas;
pub mod background;
pub mod client;
pub mod control;
pub mod door;
pub mod failure;
pub mod follow;
pub mod log;
pub mod mounts;
pub mod opening;
pub mod operations;
pub mod ops;
pub mod protocol;
pub mod scanning;
pub mod serve;
pub mod signals;
pub mod watch;

pub use failure::{Failure, FailureKind};
pub use protocol::{BucketPlace, Progress, Request, Until};
