//! One round: all that waits, until nothing does.

use vfs::Guarded;

use super::batch::{Batch, Ends, Pipe};
use super::evict::Pressure;
use super::{Shared, UploadState, look};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::types::PackId;

/// The two ends of the pipe: the ledger names packs, and notes them behind a look at the volume.
struct Round<'a> {
    shared: &'a Shared,
    external: &'a Guarded,
}

impl Ends for Round<'_> {
    fn oldest(&mut self, count_max: usize) -> Vec<PackId> {
        let packs = self.shared.ledger.to_upload(count_max);
        packs.into_iter().map(|(pack, _)| pack).collect()
    }

    fn count(&mut self, batch: Batch) -> Result<()> {
        let (shared, volume) = (self.shared, &*self.external.volume);
        look(volume)?;
        failpoint::hit(failpoint::AFTER_PACK_PUT);
        for (pack, len) in batch.sent {
            shared.ledger.uploaded(pack, len, shared.clock.now_secs())?;
        }
        batch.failure.map_or(Ok(()), Err)?;
        // Small, and what is sent is worth nothing without it: never behind the rest of the queue.
        shared.archive(volume)?;
        shared.evict(Pressure::Young)?;
        // Whoever waits need not wait for the end of a long queue.
        shared.settle(self.external, UploadState::Up);
        Ok(())
    }
}

impl Shared {
    pub(super) fn round(&self, external: &Guarded) -> Result<()> {
        let volume = &*external.volume;
        look(volume)?;
        let is_any = !self.ledger.to_upload(1).is_empty();
        if is_any {
            self.refuse_fork_once(volume)?;
        }
        let pipe = Pipe {
            in_flight: &|| self.lock().in_flight,
            is_stopped: &|| self.lock().stop,
            put: &|pack| self.put_pack(volume, pack),
        };
        let mut ends = Round {
            shared: self,
            external,
        };
        let unreadable = pipe.run(&mut ends)?;
        self.archive(volume)?;
        self.evict(Pressure::Young)?;
        unreadable.map_or(Ok(()), Err::<(), Error>)?;
        self.sweep(volume);
        Ok(())
    }
}
