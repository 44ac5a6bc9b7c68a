//! Reading the journal back after a stop: O(uncommitted), never O(volume).
//!
//! The journal ends at the first frame that is not whole. That is a torn tail, and nothing that was
//! acknowledged is in it; but when a whole frame lies behind a broken one, the broken one *was*
//! acknowledged, and that is damage to be named (invariant 3).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::frame::{self, BLOCK_LEN, HEADER_LEN, PackExtent};
use crate::format::keys::Changes;
use crate::journal::parse_file_name;
use crate::types::{Epoch, Lsn, PackId};

/// What the journal holds of one epoch.
#[derive(Debug)]
pub struct ReplayedEpoch {
    /// The epoch.
    pub epoch: Epoch,
    /// Its committed changes.
    pub changes: Changes,
}

/// What the journal holds.
#[derive(Debug, Default)]
pub struct Replay {
    /// Epochs in order.
    pub epochs: Vec<ReplayedEpoch>,
    /// For each pack that a frame names, how much of it was durable at the last one.
    pub packs: Vec<PackExtent>,
    /// Number of the last frame.
    pub last_lsn: Lsn,
    /// Whole frames.
    pub frames: u64,
    /// Bytes of torn frames at the end, for the log.
    pub torn_bytes: u64,
    /// The last file, if it was only just made: without a header, and so without a frame.
    pub unbegun: Option<PathBuf>,
}

/// The journal's files in order of their epochs.
pub fn files(dir: &Path) -> Result<Vec<(PathBuf, Epoch)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        if let Some((epoch, session)) = entry.file_name().to_str().and_then(parse_file_name) {
            files.push((epoch, session, entry.path()));
        }
    }
    files.sort();
    Ok(files
        .into_iter()
        .map(|(epoch, _, path)| (path, epoch))
        .collect())
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("sync", dir))
}

/// Whether the journal in `dir` has a file of `epoch`.
pub fn has_epoch(dir: &Path, epoch: Epoch) -> Result<bool> {
    Ok(files(dir)?.iter().any(|(_, of)| *of == epoch))
}

/// Removes a file that holds nothing. Once another one follows it, it would be taken for a damaged one.
pub fn remove_unbegun(replay: &Replay) -> Result<()> {
    let Some(path) = &replay.unbegun else {
        return Ok(());
    };
    std::fs::remove_file(path).map_err(Error::io("remove", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Reads every frame of the journal in `dir` that is newer than `through`, the last epoch that the
/// index and the segments have. `covered` is the newest epoch record's own epoch and last frame: the first
/// frame behind it must follow, or a file is missing in between.
pub fn replay(
    dir: &Path,
    volume: [u8; 16],
    through: Epoch,
    covered: (Epoch, Lsn),
) -> Result<Replay> {
    let mut replay = Replay::default();
    let files = files(dir)?;
    let last = files.len().saturating_sub(1);
    for (position, (path, epoch)) in files.iter().enumerate() {
        if *epoch > through {
            // Of epochs that were recovered together a record may name the last frame of all.
            let lsn_max = Some(Lsn(covered.1.0 + 1)).filter(|_| *epoch > covered.0);
            let place = Place {
                epoch: *epoch,
                is_last: position == last,
                lsn_max,
            };
            replay_file(path, place, volume, &mut replay)?;
        }
    }
    Ok(replay)
}

/// What is known of a file before it is read.
#[derive(Clone, Copy)]
struct Place {
    epoch: Epoch,
    is_last: bool,
    /// The number of its first frame is at most this, if no frame was read before.
    lsn_max: Option<Lsn>,
}

/// Visits the changes of every whole frame of a journal file at or behind `from`, passing over what is not
/// whole: of a damaged journal, what was lost with it.
pub fn whole_frames(path: &Path, from: u64, visit: &mut dyn FnMut(&Changes)) -> Result<()> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("stat", path))?.len();
    let mut offset = from.max(BLOCK_LEN as u64);
    while let Some(found) = next_whole_frame(&file, path, offset, len)? {
        let Some((frame, _, changes)) = read_frame(&file, path, found, len)? else {
            return Ok(());
        };
        visit(&changes);
        offset = found + frame_len(frame.body_len);
    }
    Ok(())
}

fn replay_file(path: &Path, place: Place, volume: [u8; 16], replay: &mut Replay) -> Result<()> {
    let Place {
        epoch,
        is_last,
        lsn_max,
    } = place;
    let object = path.display().to_string();
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("stat", path))?.len();
    let mut head = vec![0; BLOCK_LEN];
    let header = read_up_to(&file, path, &mut head, 0)?
        .then(|| frame::decode_file_header(&head))
        .flatten();
    let Some(header) = header else {
        // Its first block is synced before its first frame is written: without a header, no frame.
        let frame = next_whole_frame(&file, path, BLOCK_LEN as u64, len)?;
        return match frame {
            None if is_last => {
                replay.unbegun = Some(path.to_owned());
                Ok(())
            }
            _ => Err(damaged(
                &object,
                0,
                "the file's header is not readable, but frames follow",
            )),
        };
    };
    if header.volume != volume || header.epoch != epoch {
        return Err(damaged(
            &object,
            0,
            "the file belongs to another volume or epoch",
        ));
    }
    let mut changes = Changes::new();
    let mut offset = BLOCK_LEN as u64;
    while let Some((frame, packs, frame_changes)) = read_frame(&file, path, offset, len)? {
        if replay.last_lsn != Lsn(0) && frame.lsn.0 != replay.last_lsn.0 + 1 {
            let reason = format!("frame {} follows frame {}", frame.lsn, replay.last_lsn);
            return Err(damaged(&object, offset, &reason));
        }
        if replay.last_lsn == Lsn(0) && lsn_max.is_some_and(|max| frame.lsn > max) {
            let reason = format!(
                "its first frame is {}, and those since the newest epoch record are missing: a journal file is gone",
                frame.lsn
            );
            return Err(damaged(&object, offset, &reason));
        }
        replay.last_lsn = frame.lsn;
        replay.frames += 1;
        changes.extend(frame_changes);
        for extent in packs {
            note_pack(&mut replay.packs, extent);
        }
        offset += frame_len(frame.body_len);
    }
    if let Some(later) = next_whole_frame(&file, path, offset + BLOCK_LEN as u64, len)? {
        let reason = format!("a broken frame with a whole one behind it, at byte {later}");
        return Err(damaged(&object, offset, &reason));
    }
    replay.torn_bytes += torn_len(&file, path, offset, len)?;
    if !changes.is_empty() {
        replay.epochs.push(ReplayedEpoch { epoch, changes });
    }
    Ok(())
}

fn damaged(object: &str, offset: u64, reason: &str) -> Error {
    Error::corrupt(
        object,
        offset,
        format!(
            "{reason}. Acknowledged changes are lost there, and nothing was changed. The external volume can be \
             mounted as it is (tidefs mount --external). tidefs check --fix moves the journal from this point on to \
             lost+found, with a list of what was lost, and then the volume opens without it"
        ),
    )
}

fn note_pack(packs: &mut Vec<PackExtent>, extent: PackExtent) {
    let pack: PackId = extent.pack;
    match packs.iter_mut().find(|known| known.pack == pack) {
        Some(known) => known.len = known.len.max(extent.len),
        None => packs.push(extent),
    }
}

fn frame_len(body_len: u32) -> u64 {
    (HEADER_LEN as u64 + u64::from(body_len)).next_multiple_of(BLOCK_LEN as u64)
}

/// Fills `buffer` from `offset`; false when the file ends before.
fn read_up_to(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

type WholeFrame = (frame::FrameHeader, Vec<PackExtent>, Changes);

/// The frame at `offset`, if a whole one is there.
fn read_frame(file: &File, path: &Path, offset: u64, len: u64) -> Result<Option<WholeFrame>> {
    let mut head = [0; HEADER_LEN];
    if !read_up_to(file, path, &mut head, offset)? {
        return Ok(None);
    }
    let Some(header) = frame::decode_header(&head) else {
        return Ok(None);
    };
    let body_start = offset + HEADER_LEN as u64;
    if u64::from(header.body_len) > len.saturating_sub(body_start) {
        return Ok(None);
    }
    let mut body = vec![0; header.body_len as usize];
    if !read_up_to(file, path, &mut body, body_start)? {
        return Ok(None);
    }
    Ok(frame::decode_body(&header, &body).map(|(packs, changes)| (header, packs, changes)))
}

/// Where the first whole frame at or behind `from` is.
fn next_whole_frame(file: &File, path: &Path, from: u64, len: u64) -> Result<Option<u64>> {
    let mut offset = from;
    while offset + HEADER_LEN as u64 <= len {
        if read_frame(file, path, offset, len)?.is_some() {
            return Ok(Some(offset));
        }
        offset += BLOCK_LEN as u64;
    }
    Ok(None)
}

/// How many bytes from `offset` on were begun and not finished.
fn torn_len(file: &File, path: &Path, offset: u64, len: u64) -> Result<u64> {
    let mut block = vec![0; BLOCK_LEN];
    let mut end = offset;
    while end + (BLOCK_LEN as u64) <= len && read_up_to(file, path, &mut block, end)? {
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        end += BLOCK_LEN as u64;
    }
    Ok(end - offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys::Key;
    use crate::journal::JournalWriter;
    use crate::types::SessionId;
    use bytes::Bytes;

    const VOLUME: [u8; 16] = [4; 16];
    const COVERED: (Epoch, Lsn) = (Epoch(0), Lsn(0));

    fn change(n: u8) -> Changes {
        Changes::from([(Key::from_bytes(&[n]), Some(Bytes::from(vec![n; 10])))])
    }

    fn written(dir: &Path, frames: &[(u64, u8)]) -> JournalWriter {
        let mut journal = JournalWriter::new(dir, VOLUME, SessionId([1; 8]), Lsn(1));
        for (epoch, n) in frames {
            let pack = PackExtent {
                pack: PackId([5; 16]),
                len: u32::from(*n),
            };
            journal.append(Epoch(*epoch), &[pack], &change(*n)).unwrap();
        }
        journal
    }

    fn file_of(dir: &Path, epoch: u64) -> PathBuf {
        files(dir)
            .unwrap()
            .into_iter()
            .find(|(_, of)| *of == Epoch(epoch))
            .unwrap()
            .0
    }

    fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(bytes, offset)
            .unwrap();
    }

    #[test]
    fn what_was_appended_is_replayed_epoch_by_epoch() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (1, 2), (2, 3)]);
        let replay = replay(dir.path(), VOLUME, Epoch(0), COVERED).unwrap();
        assert_eq!(replay.last_lsn, Lsn(3));
        assert_eq!(
            replay.packs,
            [PackExtent {
                pack: PackId([5; 16]),
                len: 3
            }]
        );
        let epochs: Vec<_> = replay
            .epochs
            .iter()
            .map(|e| (e.epoch, e.changes.len()))
            .collect();
        assert_eq!(epochs, [(Epoch(1), 2), (Epoch(2), 1)]);
    }

    #[test]
    fn dropped_epochs_are_gone_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = written(dir.path(), &[(1, 1), (2, 2)]);
        journal.drop_through(Epoch(1)).unwrap();
        assert_eq!(files(dir.path()).unwrap().len(), 1);
        let replay = replay(dir.path(), VOLUME, Epoch(1), (Epoch(1), Lsn(1))).unwrap();
        assert_eq!((replay.frames, replay.last_lsn), (1, Lsn(2)));
    }

    #[test]
    fn a_torn_last_frame_is_absent_and_the_ones_before_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (1, 2)]);
        let second = 2 * BLOCK_LEN as u64;
        overwrite(
            &file_of(dir.path(), 1),
            second + HEADER_LEN as u64 + 3,
            b"torn",
        );
        let replay = replay(dir.path(), VOLUME, Epoch(0), COVERED).unwrap();
        assert_eq!((replay.frames, replay.torn_bytes), (1, BLOCK_LEN as u64));
    }

    #[test]
    fn a_broken_frame_with_a_whole_one_behind_it_is_named_as_damage() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (1, 2), (1, 3)]);
        let path = file_of(dir.path(), 1);
        overwrite(&path, 2 * BLOCK_LEN as u64, b"flip");
        let error = replay(dir.path(), VOLUME, Epoch(0), COVERED).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { object, offset: 8192, .. } if *object == path.display().to_string())
        );
    }

    #[test]
    fn a_lost_last_frame_of_an_older_file_is_named_as_damage() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (1, 2), (2, 3)]);
        overwrite(&file_of(dir.path(), 1), 2 * BLOCK_LEN as u64, b"flip");
        assert!(matches!(
            replay(dir.path(), VOLUME, Epoch(0), COVERED),
            Err(Error::Corrupt { .. })
        ));
    }

    #[test]
    fn a_lost_first_file_is_named_as_damage() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (2, 2), (3, 3)]);
        std::fs::remove_file(file_of(dir.path(), 2)).unwrap();
        let replayed = |covered| replay(dir.path(), VOLUME, covered, (covered, Lsn(covered.0)));
        assert!(matches!(replayed(Epoch(1)), Err(Error::Corrupt { .. })));
        assert_eq!(replayed(Epoch(2)).unwrap().frames, 1);
    }

    #[test]
    fn a_file_cut_anywhere_never_panics_and_never_invents() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &[(1, 1), (1, 2)]);
        let path = file_of(dir.path(), 1);
        for len in (0..=4 * BLOCK_LEN as u64).rev().step_by(517) {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(len)
                .unwrap();
            if let Ok(replay) = replay(dir.path(), VOLUME, Epoch(0), COVERED) {
                assert!(replay.frames <= 2);
            }
        }
    }
}
