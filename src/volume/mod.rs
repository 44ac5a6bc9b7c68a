//! The engine's one door: a volume is opened, used as a tree, and closed.
//!
//! In reading order: `tree` (the interface), `engine` (what an open volume is), `open` (recovery),
//! `live` and `view_tree` (the two trees), `snapshots` (both as one), `account_tree` (one account alone), `history` (all moments at once, for whoever looks), `moment` (beside a daemon), `external` and `follow` (without a backup path), `store` (how an external volume is opened), `place` (what it stands on), `choice` and `attach` (how one is chosen and becomes ours), `limits` (how much of its line is used), `namespace`, `extents`, `files`, `dirty` (what operations do),
//! `commit`, `archive`, `waiting`, `indexer` (how it becomes durable),
//! `feed`, `bring`, `revive` and `fed` (changes that do not come through the mount), `tenancy` (accounts that take none), `backlog`, `flow`, `pacer`, `space`, `ballast`, `ack`, `wait` (what is not on the external volume yet). FUSE, the command line and sockets may not enter.

pub mod account;
pub mod account_tree;
pub mod ack;
pub mod archive;
pub mod attach;
pub mod backlog;
pub mod ballast;
pub mod bring;
pub mod choice;
pub mod commit;
pub mod dirty;
pub mod engine;
pub mod extents;
pub mod external;
pub mod fed;
pub mod feed;
pub mod files;
pub mod flow;
pub mod follow;
pub mod health;
pub mod history;
pub mod indexer;
pub mod init;
pub mod limits;
pub mod live;
pub mod lock;
pub mod lost;
pub mod moment;
pub mod namespace;
pub mod open;
pub mod pacer;
pub mod place;
pub mod revive;
pub mod settings;
pub mod snapshots;
pub mod space;
pub mod store;
mod sweep;
pub mod tenancy;
pub mod tree;
pub mod update;
pub mod view_tree;
pub mod wait;
pub mod waiting;
pub mod xattrs;

pub use engine::{Durability, EpochEntry, Recovery, Status, Volume};
