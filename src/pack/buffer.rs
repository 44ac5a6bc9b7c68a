//! Memory that O_DIRECT takes: a buffer whose bytes begin at a block boundary.

use crate::format::pack::BLOCK_LEN;

const ALIGN: usize = BLOCK_LEN as usize;

/// Collects bytes for one aligned write.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    /// One block longer than the capacity, so that an aligned stretch of it is found without `unsafe`.
    /// Never grown: it must not move.
    memory: Box<[u8]>,
    begin: usize,
    filled: usize,
}

impl AlignedBuffer {
    /// Large enough that a disk works at its full speed; small enough that the last write of a sync,
    /// which is on average half of it, does not delay the fsync.
    pub(super) const CAPACITY: usize = 1 << 20;

    pub(super) fn new() -> AlignedBuffer {
        let memory = vec![0; Self::CAPACITY + ALIGN].into_boxed_slice();
        // `align_offset` may decline to answer; the write then gets EINVAL and falls back to buffered.
        let begin = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        AlignedBuffer {
            memory,
            begin,
            filled: 0,
        }
    }

    /// Takes as much of `bytes` as there is room for, and answers how much.
    pub(super) fn put(&mut self, bytes: &[u8]) -> usize {
        let from = self.begin + self.filled;
        let room = self
            .memory
            .get_mut(from..self.begin + Self::CAPACITY)
            .unwrap_or_default();
        let taken = bytes.len().min(room.len());
        if let (Some(to), Some(part)) = (room.get_mut(..taken), bytes.get(..taken)) {
            to.copy_from_slice(part);
        }
        self.filled += taken;
        taken
    }

    pub(super) fn filled(&self) -> &[u8] {
        self.memory
            .get(self.begin..self.begin + self.filled)
            .unwrap_or_default()
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == Self::CAPACITY
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_begin_at_a_block_boundary_and_stop_at_the_capacity() {
        let mut buffer = AlignedBuffer::new();
        assert_eq!(buffer.put(b"tide"), 4);
        assert_eq!(buffer.filled().as_ptr().align_offset(ALIGN), 0);
        assert_eq!(buffer.filled(), b"tide");
        assert_eq!(
            buffer.put(&vec![7; AlignedBuffer::CAPACITY]),
            AlignedBuffer::CAPACITY - 4
        );
        assert!(buffer.is_full());
        assert_eq!(buffer.put(b"more"), 0);
        assert!(buffer.filled().starts_with(b"tide\x07") && buffer.filled().ends_with(&[7]));
        buffer.clear();
        assert_eq!(buffer.filled(), b"");
    }
}
