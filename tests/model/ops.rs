//! The operations of a case. Targets are numbers, taken modulo what there is when the operation runs, so
//! that any part of a list of operations is a list of operations and shrinking works.

use proptest::prelude::*;
use tidefs::volume::tree::{RenameMode, XattrMode};

#[derive(Clone, Copy, Debug)]
pub enum MadeKind {
    File,
    Dir,
    Symlink,
    Fifo,
    Device,
}

#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Noise(u8),
    Same(u8),
}

#[derive(Clone, Copy, Debug)]
pub enum Space {
    Allocate,
    AllocateKeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

/// A name in a directory: a directory among all, and a name among those there or in the alphabet.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub dir: u8,
    pub name: u8,
}

#[derive(Clone, Debug)]
pub enum Op {
    Create {
        at: Name,
        kind: MadeKind,
        mode: u16,
        gid: u8,
    },
    Write {
        file: u8,
        offset: u32,
        len: u32,
        fill: Fill,
        sync: bool,
    },
    Truncate {
        file: u8,
        size: u32,
    },
    Rename {
        from: Name,
        to: Name,
        mode: RenameMode,
    },
    Link {
        node: u8,
        to: Name,
    },
    Unlink {
        at: Name,
    },
    Rmdir {
        at: Name,
    },
    SetAttr {
        node: u8,
        mode: Option<u16>,
        mtime: Option<i32>,
        owner: Option<u8>,
    },
    SetXattr {
        node: u8,
        name: u8,
        value: u8,
        mode: XattrMode,
    },
    RemoveXattr {
        node: u8,
        name: u8,
    },
    Fallocate {
        file: u8,
        offset: u32,
        len: u32,
        how: Space,
    },
    CopyRange {
        from: (u8, u32),
        to: (u8, u32),
        len: u32,
    },
    Open {
        file: u8,
        truncate: bool,
    },
    /// Through a handle that stays open: nothing settles it.
    HandleWrite {
        handle: u8,
        offset: u32,
        len: u32,
        fill: Fill,
    },
    /// Of a file that is open, and mostly has bytes that nothing has settled.
    HandleRename {
        handle: u8,
        to: Name,
        mode: RenameMode,
    },
    HandleFsync {
        handle: u8,
    },
    Close {
        handle: u8,
    },
    Commit,
    Snapshot {
        named: bool,
    },
    Archive,
    Reopen,
    Crash {
        with_index: bool,
    },
    Check,
}

fn name() -> impl Strategy<Value = Name> {
    (any::<u8>(), any::<u8>()).prop_map(|(dir, name)| Name { dir, name })
}

fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![5 => Just(0_u32), 4 => 0..9000_u32, 2 => 0..300_000_u32, 1 => 0..2_500_000_u32]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![5 => 0..300_u32, 4 => 0..70_000_u32, 1 => 0..1_500_000_u32]
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![3 => any::<u8>().prop_map(Fill::Noise), 1 => (0..2_u8).prop_map(Fill::Same)]
}

fn rename_mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![3 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 2 => Just(RenameMode::Exchange)]
}

fn made_kind() -> impl Strategy<Value = MadeKind> {
    prop_oneof![
        8 => Just(MadeKind::File),
        6 => Just(MadeKind::Dir),
        1 => Just(MadeKind::Symlink),
        1 => Just(MadeKind::Fifo),
        1 => Just(MadeKind::Device),
    ]
}

fn space() -> impl Strategy<Value = Space> {
    prop_oneof![
        Just(Space::Punch),
        Just(Space::Zero),
        Just(Space::ZeroKeepSize),
        Just(Space::Allocate),
        Just(Space::AllocateKeepSize),
    ]
}

fn xattr_mode() -> impl Strategy<Value = XattrMode> {
    prop_oneof![3 => Just(XattrMode::Any), 1 => Just(XattrMode::Create), 1 => Just(XattrMode::Replace)]
}

fn of_names() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (name(), made_kind(), 0..0o10000_u16, 0..3_u8)
            .prop_map(|(at, kind, mode, gid)| Op::Create { at, kind, mode, gid }),
        8 => (name(), name(), rename_mode()).prop_map(|(from, to, mode)| Op::Rename { from, to, mode }),
        4 => (any::<u8>(), name()).prop_map(|(node, to)| Op::Link { node, to }),
        4 => name().prop_map(|at| Op::Unlink { at }),
        3 => name().prop_map(|at| Op::Rmdir { at }),
    ]
}

fn of_content() -> impl Strategy<Value = Op> {
    let sync = prop::bool::weighted(0.2);
    prop_oneof![
        10 => (any::<u8>(), offset(), len(), fill(), sync)
            .prop_map(|(file, offset, len, fill, sync)| Op::Write { file, offset, len, fill, sync }),
        3 => (any::<u8>(), offset()).prop_map(|(file, size)| Op::Truncate { file, size }),
        3 => (any::<u8>(), offset(), 1..200_000_u32, space())
            .prop_map(|(file, offset, len, how)| Op::Fallocate { file, offset, len, how }),
        3 => ((any::<u8>(), offset()), (any::<u8>(), offset()), len())
            .prop_map(|(from, to, len)| Op::CopyRange { from, to, len }),
    ]
}

fn of_handles() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(file, truncate)| Op::Open { file, truncate }),
        // Small, so that the file's run stays below what is cut before the file settles.
        5 => (any::<u8>(), 0..100_000_u32, 0..20_000_u32, fill())
            .prop_map(|(handle, offset, len, fill)| Op::HandleWrite { handle, offset, len, fill }),
        2 => (any::<u8>(), name(), rename_mode())
            .prop_map(|(handle, to, mode)| Op::HandleRename { handle, to, mode }),
        2 => any::<u8>().prop_map(|handle| Op::HandleFsync { handle }),
        2 => any::<u8>().prop_map(|handle| Op::Close { handle }),
    ]
}

fn of_attributes() -> impl Strategy<Value = Op> {
    let (mode, mtime, owner) = (
        prop::option::of(0..0o10000_u16),
        prop::option::of(any::<i32>()),
        prop::option::weighted(0.2, 0..3_u8),
    );
    prop_oneof![
        3 => (any::<u8>(), mode, mtime, owner)
            .prop_map(|(node, mode, mtime, owner)| Op::SetAttr { node, mode, mtime, owner }),
        3 => (any::<u8>(), 0..3_u8, any::<u8>(), xattr_mode())
            .prop_map(|(node, name, value, mode)| Op::SetXattr { node, name, value, mode }),
        1 => (any::<u8>(), 0..3_u8).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
    ]
}

fn of_the_volume() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Commit),
        4 => any::<bool>().prop_map(|named| Op::Snapshot { named }),
        1 => Just(Op::Archive),
        2 => Just(Op::Reopen),
        4 => any::<bool>().prop_map(|with_index| Op::Crash { with_index }),
        2 => Just(Op::Check),
    ]
}

fn mixed(
    names: u32,
    content: u32,
    handles: u32,
    attributes: u32,
    volume: u32,
) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        names => of_names(),
        content => of_content(),
        handles => of_handles(),
        attributes => of_attributes(),
        volume => of_the_volume(),
    ];
    prop::collection::vec(op, 1..120)
}

/// Of everything something, or mostly what is done to files that stay open.
pub fn case() -> impl Strategy<Value = Vec<Op>> {
    prop_oneof![2 => mixed(40, 28, 14, 10, 10), 1 => mixed(20, 16, 45, 3, 16)]
}
