//! Reading the whole index to see whether anything was lost.

use super::checkpoint::Tally;
use super::{Index, IndexDoubt, decode};

/// What a verification went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Pages read.
    pub pages: u64,
    /// Entries in them.
    pub entries: u64,
    /// Bytes of the pages.
    pub len: u64,
    /// The digest of the last checkpoint was known and agreed: no page was lost or fell back since. Else
    /// the state as it is was taken for good, and the next checkpoint will hold its digest.
    pub compared: bool,
}

impl Index {
    /// Reads every page: fences without gap or overlap, checksums, and the digest of the last checkpoint.
    ///
    /// Applying waits meanwhile; readers do not.
    pub fn verify(&self) -> Result<Report, IndexDoubt> {
        self.verify_pages().map_err(|doubt| self.doubt(doubt))
    }

    fn verify_pages(&self) -> Result<Report, IndexDoubt> {
        let mut writer = self.writer();
        let mut report = Report {
            pages: 0,
            entries: 0,
            len: 0,
            compared: writer.sealed.tally.is_some(),
        };
        let (mut now, mut at_checkpoint) = (Tally::default(), 0u64);
        let mut expected = Some(bytes::Bytes::new());
        for raw in self.store.scan(b"")? {
            let page = decode(raw?)?;
            if expected.as_ref() != Some(&page.lower) {
                let lower = page.lower.escape_ascii();
                return Err(IndexDoubt::new(format!(
                    "the pages before key {lower} leave a gap or overlap"
                )));
            }
            report.entries += u64::try_from(page.entry_count()).unwrap_or(u64::MAX);
            report.len += u64::try_from(page.len()).unwrap_or(u64::MAX);
            now.add(page.digest);
            at_checkpoint = at_checkpoint.wrapping_add(writer.share_of_checkpoint(&page));
            expected = page.upper;
        }
        if expected.is_some() {
            return Err(IndexDoubt::new("the last page is missing"));
        }
        let fell_back = writer
            .sealed
            .tally
            .is_some_and(|tally| tally.digest != at_checkpoint);
        if fell_back || writer.tally.is_some_and(|tally| tally != now) {
            return Err(IndexDoubt::new("a page fell back to an earlier state"));
        }
        writer.tally = Some(now);
        self.publish_tally(writer.tally);
        report.pages = now.pages;
        Ok(report)
    }
}
