use std::time::SystemTime;

use super::*;
use crate::error::{ErrorCase, ErrorClass};
use crate::isolate::wire::{
    FRAME_LEN_MAX, PIECE_LEN_MAX, give_up_body, read_frame, read_piece, write_frame, write_piece,
};
use crate::volume::MountKind;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn requests() -> Vec<Request> {
    let path = PathBuf::from("/mnt/a b\u{e4}");
    vec![
        Request::Resolve { path: path.clone() },
        Request::Peek {
            path: path.clone(),
            key: key("server/volume.json"),
        },
        Request::Open {
            path: path.clone(),
            sentinel: None,
            tag: 7,
            first: 1 << 40,
        },
        Request::Open {
            path,
            sentinel: Some((key("s"), vec![0, 255, 7])),
            tag: u64::MAX,
            first: 0,
        },
        Request::Put {
            key: key("items/ab/x.pack"),
            len: 1 << 40,
            if_absent: true,
        },
        Request::Get {
            key: key("a"),
            range: 5..u64::MAX,
        },
        Request::Head { key: key("a/b") },
        Request::List {
            prefix: "items/".into(),
            after: Some(key("items/a")),
            limit: 1000,
        },
        Request::List {
            prefix: String::new(),
            after: None,
            limit: 1,
        },
        Request::Delete {
            keys: vec![key("a"), key("b")],
        },
        Request::Delete { keys: Vec::new() },
        Request::Space,
        Request::Probe,
        Request::Sweep {
            below: vec!["items/".into(), String::new()],
            older_than: Duration::new(3, 999_999_999),
        },
        Request::Sum {
            key: key("items/ab/x.pack"),
            len: 1 << 40,
        },
    ]
}

fn answers() -> Vec<Answer> {
    let meta = Meta {
        key: key("a"),
        len: 3,
        modified: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
    };
    let page = Page {
        objects: vec![
            meta.clone(),
            Meta {
                modified: None,
                ..meta.clone()
            },
        ],
        more: true,
    };
    let space = Space {
        total_bytes: 9,
        available_bytes: 4,
    };
    let found = Capabilities {
        kind: MountKind::Fuse,
        file_system: "fuse.sshfs".into(),
        source: "host:/x".into(),
        mount_point: "/mnt".into(),
        atomic_rename: true,
        exclusive_create: false,
        fsync: true,
        fsync_directory: false,
        direct_io: true,
        list_after_put: false,
        put_latency: Duration::from_millis(7),
        get_latency: Duration::from_nanos(1),
        warnings: vec!["one".into(), "two".into()],
        bucket: None,
    };
    let error = Error::new(ErrorClass::Permanent, "put", "dir:/x", "a", "it is full")
        .with_case(ErrorCase::NoSpace);
    vec![
        Answer::Done,
        Answer::Path("/x".into()),
        Answer::Sentinel(None),
        Answer::Sentinel(Some(vec![1, 2])),
        Answer::Meta(Some(meta)),
        Answer::Meta(None),
        Answer::Bytes(u64::MAX),
        Answer::Page(page),
        Answer::Space(Some(space)),
        Answer::Space(None),
        Answer::Capabilities(Box::new(found)),
        Answer::Count(4),
        Answer::Sum(Sum::Absent),
        Answer::Sum(Sum::OtherLen),
        Answer::Sum(Sum::Crc(u32::MAX)),
        Answer::Failed(error),
    ]
}

#[test]
fn what_is_asked_arrives_as_it_was_sent() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
    }
}

#[test]
fn what_is_answered_arrives_as_it_was_sent() {
    for place in [None, Some((u64::MAX, 2))] {
        for answer in answers() {
            let answered = Answered { place, answer };
            let arrived = Answered::decode(&answered.encode(), "put").unwrap();
            assert_eq!(format!("{arrived:?}"), format!("{answered:?}"));
        }
    }
}

#[test]
fn an_error_keeps_its_errno_its_case_and_its_words() {
    let full = crate::error::At {
        volume: "dir:/x",
        op: "look up",
        key: "a",
    }
    .errno(nix::errno::Errno::ESTALE);
    let answered = Answered {
        place: None,
        answer: Answer::Failed(full),
    };
    let arrived = Answered::decode(&answered.encode(), "put").unwrap();
    assert_eq!(format!("{arrived:?}"), format!("{answered:?}"));
    let Answer::Failed(error) = arrived.answer else {
        panic!("not an error");
    };
    assert_eq!(error.case(), ErrorCase::Stale);
    assert_eq!(error.op(), "look up");
}

/// Every cut and every changed byte of every message: an error or another message, never a panic.
#[test]
fn a_damaged_message_is_an_error_or_another_message() {
    let mut messages: Vec<Vec<u8>> = requests().iter().map(Request::encode).collect();
    messages.extend(answers().into_iter().map(|answer| {
        Answered {
            place: Some((1, 2)),
            answer,
        }
        .encode()
    }));
    for message in messages {
        for cut in 0..message.len() {
            let part = &message[..cut];
            assert!(Request::decode(part).is_err() || Answered::decode(part, "put").is_err());
        }
        for at in 0..message.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = message.clone();
                changed[at] ^= flip;
                let _ = (Request::decode(&changed), Answered::decode(&changed, "put"));
            }
        }
        let longer = [&message[..], &[0]].concat();
        assert!(Request::decode(&longer).is_err() && Answered::decode(&longer, "put").is_err());
    }
}

#[test]
fn a_frame_or_a_piece_that_is_too_long_is_refused_before_it_is_read() {
    let mut line = Vec::new();
    write_frame(&mut line, b"abc").unwrap();
    let mut input = &line[..];
    assert_eq!(read_frame(&mut input).unwrap().unwrap(), b"abc");
    assert!(read_frame(&mut input).unwrap().is_none());
    assert!(read_frame(&mut &line[..5]).is_err());
    let long = u32::try_from(FRAME_LEN_MAX + 1).unwrap().to_le_bytes();
    assert!(read_frame(&mut &long[..]).is_err());
    assert!(write_frame(&mut Vec::new(), &vec![0; FRAME_LEN_MAX + 1]).is_err());

    let mut buffer = Vec::new();
    let mut line = Vec::new();
    write_piece(&mut line, b"abc").unwrap();
    let piece = |bytes: &[u8], left, buffer: &mut Vec<u8>| {
        read_piece(&mut &*bytes, left, buffer).map(|piece| piece.map(<[u8]>::to_vec))
    };
    assert_eq!(piece(&line, 3, &mut buffer).unwrap().unwrap(), b"abc");
    assert!(piece(&line, 2, &mut buffer).is_err(), "more than was said");
    let long = u32::try_from(PIECE_LEN_MAX + 1).unwrap().to_le_bytes();
    assert!(piece(&long, u64::MAX, &mut buffer).is_err());
    assert!(piece(&[0; 4], 9, &mut buffer).is_err(), "no end to it");
    let mut line = Vec::new();
    give_up_body(&mut line).unwrap();
    assert!(piece(&line, 3, &mut buffer).unwrap().is_none());
}
