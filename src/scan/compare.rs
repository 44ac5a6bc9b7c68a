//! Whether an item is in the volume as it is in the source, by what `stat` tells of it.

use crate::format::inode::{Inode, Origin};
use crate::scan::look::Seen;
use crate::types::{FileKind, Timestamp};
use crate::volume::feed::Item;

/// A time that ends in no fraction comes from a clock of whole seconds, or of two.
const COARSE_GRAIN_NS: i128 = 2_100_000_000;
/// Others tick at least this often.
const FINE_GRAIN_NS: i128 = 100_000_000;

/// How an item and its inode in the volume differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not at all.
    Same,
    /// In attributes only; the content need not be read.
    Attributes,
    /// The content may be another.
    Content,
    /// It is another item.
    Other,
}

/// Compares what is seen with what the volume has under the same name.
pub fn compare(seen: &Seen, place: u32, inode: &Inode) -> Verdict {
    let is_it = inode
        .origin
        .is_some_and(|origin| (origin.place, origin.number) == (place, seen.number));
    if inode.kind != seen.kind || (!is_it && seen.kind != FileKind::Dir) {
        return Verdict::Other;
    }
    let is_settled = is_it && inode.origin.is_some_and(|origin| origin.is_settled);
    let has_attributes = inode.mode == seen.mode
        && inode.uid == seen.uid
        && inode.gid == seen.gid
        && inode.rdev == seen.rdev;
    let has_times = inode.mtime == seen.mtime && inode.ctime == seen.ctime;
    if seen.kind != FileKind::File {
        let is_same = is_settled && has_attributes && has_times;
        return if is_same {
            Verdict::Same
        } else {
            Verdict::Attributes
        };
    }
    if !is_settled || inode.size != seen.size || inode.mtime != seen.mtime {
        return Verdict::Content;
    }
    // A new change time says that something changed. Owner, mode or a name more explain it; else it may be content
    // whose time was put back.
    match (
        inode.ctime == seen.ctime,
        has_attributes && inode.nlink == seen.nlink,
    ) {
        (true, true) => Verdict::Same,
        (true, false) if has_attributes => Verdict::Same,
        (_, false) => Verdict::Attributes,
        (false, true) => Verdict::Content,
    }
}

/// Whether the inode has the content of what is seen under another name: size and times say so.
pub fn has_content_of(inode: &Inode, seen: &Seen) -> bool {
    if std::env::var("MUT").is_ok_and(|m| m == "content") {
        return false;
    }
    inode.kind == seen.kind
        && inode.origin.is_some_and(|origin| origin.is_settled)
        && (seen.kind != FileKind::File || inode.size == seen.size)
        && inode.mtime == seen.mtime
        && (seen.kind == FileKind::File || inode.rdev == seen.rdev)
}

/// Whether a change after `now` would show in the times: not when the item changed within the grain of the clock that
/// sets them. A change time ahead of our clock is never trusted.
pub fn is_settled(seen: &Seen, now: Timestamp) -> bool {
    if std::env::var("MUT").is_ok_and(|m| m == "settled") {
        return true;
    }
    let ns = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let grain = if seen.ctime.nanos == 0 {
        COARSE_GRAIN_NS
    } else {
        FINE_GRAIN_NS
    };
    ns(now) - ns(seen.ctime) > grain
}

/// What is seen as an item of the volume; target, attributes and content are added by whoever reads them.
pub fn item_of(seen: &Seen, place: u32, is_settled: bool) -> Item {
    Item {
        kind: seen.kind,
        mode: seen.mode,
        uid: seen.uid,
        gid: seen.gid,
        rdev: seen.rdev,
        size: if seen.kind == FileKind::File {
            seen.size
        } else {
            0
        },
        atime: seen.atime,
        mtime: seen.mtime,
        ctime: seen.ctime,
        target: Vec::new(),
        origin: Origin {
            place,
            number: seen.number,
            is_settled,
        },
        xattrs: None,
        content: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        let time = Timestamp {
            secs: 100,
            nanos: 5,
        };
        Seen {
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 1,
            gid: 2,
            rdev: 0,
            size: 10,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
            born: None,
            number: 77,
            device: 1,
            is_mount: false,
        }
    }

    fn inode() -> Inode {
        let seen = seen();
        Inode {
            kind: seen.kind,
            mode: seen.mode,
            nlink: 1,
            uid: seen.uid,
            gid: seen.gid,
            rdev: 0,
            size: seen.size,
            allocated: 0,
            atime: seen.atime,
            mtime: seen.mtime,
            ctime: seen.ctime,
            parent: None,
            target: Vec::new(),
            extents: Vec::new(),
            has_leaves: false,
            origin: Some(item_of(&seen, 0, true).origin),
        }
    }

    #[test]
    fn only_what_can_have_changed_the_content_makes_it_read_again() {
        let later = Timestamp {
            secs: 101,
            nanos: 5,
        };
        let verdict = |change: &dyn Fn(&mut Seen)| {
            let mut seen = seen();
            change(&mut seen);
            compare(&seen, 0, &inode())
        };
        assert_eq!(verdict(&|_| {}), Verdict::Same);
        assert_eq!(verdict(&|seen| seen.atime = later), Verdict::Same);
        assert_eq!(verdict(&|seen| seen.size = 11), Verdict::Content);
        assert_eq!(verdict(&|seen| seen.mtime = later), Verdict::Content);
        assert_eq!(verdict(&|seen| seen.ctime = later), Verdict::Content);
        let chmod = |seen: &mut Seen| {
            seen.ctime = later;
            seen.mode = 0o600;
        };
        assert_eq!(verdict(&chmod), Verdict::Attributes);
        let linked = |seen: &mut Seen| {
            seen.ctime = later;
            seen.nlink = 2;
        };
        assert_eq!(verdict(&linked), Verdict::Attributes);
        assert_eq!(verdict(&|seen| seen.number = 78), Verdict::Other);
        assert_eq!(compare(&seen(), 1, &inode()), Verdict::Other);
        let mut unsettled = inode();
        unsettled.origin = Some(item_of(&seen(), 0, false).origin);
        assert_eq!(compare(&seen(), 0, &unsettled), Verdict::Content);
    }

    #[test]
    fn what_changed_a_moment_ago_is_not_trusted() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        assert!(!is_settled(&seen(), at(100, 50_000_000)));
        assert!(is_settled(&seen(), at(100, 200_000_000)));
        assert!(!is_settled(&seen(), at(99, 0)), "our clock is behind");
        let coarse = Seen {
            ctime: at(100, 0),
            ..seen()
        };
        assert!(!is_settled(&coarse, at(102, 0)));
        assert!(is_settled(&coarse, at(103, 0)));
    }
}
