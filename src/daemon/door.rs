//! The one door for changes that do not come through the mount: scan, restore, undelete.
//!
//! The kernel keeps names, attributes and pages for a day, because it sees every change that it makes itself. What it
//! does not see passes here: a thread that holds no lock of the engine and answers no request of FUSE tells it to forget.
//! It may have to wait there for requests under way; whoever changes the volume waits for it only when the queue is full.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Result};
use crate::fuse::Notifier;
use crate::types::{AccountId, Ino};
use crate::volume::account_tree::number_in;
use crate::volume::feed::Witness;

/// What may wait to be told: some 100 bytes each.
const WAITING_MAX: usize = 4096;

enum Word {
    Entry(Ino, Box<[u8]>),
    Inode(Ino),
    /// Answered when all before it is told.
    Settle(Sender<()>),
    End,
}

/// Tells the kernel's side of one mount.
#[derive(Debug)]
pub struct Door {
    words: Sender<Word>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// Opens it for the mount behind `notifier`, of the whole volume or of `account` alone.
    pub fn open(notifier: Notifier, account: Option<AccountId>) -> Result<Arc<Door>> {
        let (words, queue) = bounded(WAITING_MAX);
        let thread = thread::Builder::new()
            .name("door".into())
            .spawn(move || tell(&queue, &notifier, account))
            .map_err(Error::io("start", "the door's thread"))?;
        Ok(Arc::new(Door {
            words,
            thread: Mutex::new(Some(thread)),
        }))
    }

    fn say(&self, word: Word) {
        // Fails when the thread is gone: then so is the mount, and there is nothing to forget.
        let _ = self.words.send(word);
    }

    /// Ends the thread when all is told.
    pub fn close(&self) {
        self.say(Word::End);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // It holds nothing that a panic could have spoilt.
            let _ = thread.join();
        }
    }
}

impl Witness for Door {
    fn entry(&self, parent: Ino, name: &[u8]) {
        if std::env::var("MUT").is_ok_and(|m| m == "door") {
            return;
        }
        self.say(Word::Entry(parent, name.into()));
    }

    fn inode(&self, ino: Ino) {
        if std::env::var("MUT").is_ok_and(|m| m == "pages") {
            return;
        }
        self.say(Word::Inode(ino));
    }

    fn settle(&self) {
        let (told, all) = bounded(1);
        self.say(Word::Settle(told));
        // An error is an answer too: the thread is gone.
        let _ = all.recv();
    }
}

fn tell(queue: &Receiver<Word>, notifier: &Notifier, account: Option<AccountId>) {
    for word in queue {
        let told = match word {
            Word::Entry(parent, name) => {
                notifier.invalidate_entry(number_in(account, parent), &name)
            }
            Word::Inode(ino) => notifier.invalidate_inode(number_in(account, ino)),
            Word::Settle(answer) => {
                // Who asked may have given up.
                let _ = answer.send(());
                Ok(())
            }
            Word::End => return,
        };
        if let Err(error) = told {
            // Most often: the kernel never knew of it.
            tracing::trace!(error = %error.chain(), "the kernel was told to forget");
        }
    }
}
