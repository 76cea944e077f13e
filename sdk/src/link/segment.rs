//! One file of the spool's log: how records lie in it, and how they are found again after damage.
//!
//! A segment is a header and records; a record is a head with its own checksum and a payload with another.
//! The checksums of heads are seeded with the log's random id, so that no recorded text can pass for a record.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use uuid::Uuid;

/// Bytes before the first record.
pub(crate) const SEGMENT_HEAD: u64 = 40;
/// Bytes before a record's payload.
pub(crate) const RECORD_HEAD: usize = 32;
/// Longest payload, bytes.
pub(crate) const MAX_PAYLOAD: usize = 128 * 1024;

const SEGMENT_MAGIC: [u8; 8] = *b"OTXSPOOL";
const VERSION: u32 = 1;
const RECORD_MAGIC: [u8; 4] = [0xF7, b'O', b'x', 0xE5];
/// Bytes read from the file at once.
const CHUNK: u64 = 32 * 1024;

/// The smallest part of a disk that fails by itself.
const SECTOR: usize = 512;

/// Where a record belongs and what it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Position in the log, gapless over all segments.
    pub lsn: u64,
    /// Micro-USDC that the record is thought to cost.
    pub spent: u64,
    len: u32,
    payload_crc: u32,
}

/// What a scan finds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A sound record.
    Record(Head, Vec<u8>),
    /// Bytes that are no record. `torn`: they look like a write that did not finish.
    Damage { at: u64, len: u64, torn: bool },
    /// Nothing more before the end.
    End,
}

/// The header of a segment.
pub(crate) fn segment_head(log: Uuid, first: u64) -> [u8; SEGMENT_HEAD as usize] {
    let mut head = [0; SEGMENT_HEAD as usize];
    head[..8].copy_from_slice(&SEGMENT_MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..28].copy_from_slice(log.as_bytes());
    head[28..36].copy_from_slice(&first.to_le_bytes());
    let crc = crc32c::crc32c(&head[..36]);
    head[36..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// The log that a segment belongs to; `None` when its header is damaged.
///
/// # Errors
/// When the file cannot be read, or was written by a newer version.
pub(crate) fn log_of(file: &File) -> io::Result<Option<Uuid>> {
    let mut head = [0; SEGMENT_HEAD as usize];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => {}
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(other) => return Err(other),
    }
    if head[..8] != SEGMENT_MAGIC || crc32c::crc32c(&head[..36]) != u32_at(&head, 36) {
        return Ok(None);
    }
    if u32_at(&head, 8) != VERSION {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the spool was written by a newer version"));
    }
    Ok(Uuid::from_slice(&head[12..28]).ok())
}

/// The start value of the checksums of a log's record heads.
pub(crate) fn seed_of(log: Uuid) -> u32 {
    crc32c::crc32c(log.as_bytes())
}

/// Appends a record to a buffer.
pub(crate) fn push_record(out: &mut Vec<u8>, seed: u32, lsn: u64, spent: u64, payload: &[u8]) {
    let start = out.len();
    let len = u32::try_from(payload.len()).expect("payloads are bounded by MAX_PAYLOAD");
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&lsn.to_le_bytes());
    out.extend_from_slice(&spent.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn parse_head(bytes: &[u8], seed: u32) -> Option<Head> {
    let head = bytes.get(..RECORD_HEAD)?;
    let sound = head[..4] == RECORD_MAGIC && crc32c::crc32c_append(seed, &head[..28]) == u32_at(head, 28);
    let parsed = Head {
        lsn: u64_at(head, 8),
        spent: u64_at(head, 16),
        len: u32_at(head, 4),
        payload_crc: u32_at(head, 24),
    };
    (sound && parsed.len as usize <= MAX_PAYLOAD).then_some(parsed)
}

/// Reads the records of one segment in order, with a small buffer.
#[derive(Debug)]
pub(crate) struct Scanner {
    file: File,
    seed: u32,
    at: u64,
    end: u64,
    /// Heads with a lower number are not believed: numbers only rise.
    least: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl Scanner {
    /// From the first record on, up to `end`.
    pub(crate) fn new(file: File, seed: u32, least: u64, end: u64) -> Self {
        Self { file, seed, at: SEGMENT_HEAD, end, least, chunk: Vec::new(), chunk_at: 0 }
    }

    /// Goes on after more was written.
    pub(crate) fn set_end(&mut self, end: u64) {
        self.end = end;
    }

    /// Where the next record is looked for.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// What is read next has at least this number.
    pub(crate) fn least(&self) -> u64 {
        self.least
    }

    /// Gives the buffer back while there is nothing to read.
    pub(crate) fn rest(&mut self) {
        self.chunk = Vec::new();
    }

    /// Reads bytes as they are.
    pub(crate) fn bytes(&mut self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.peek(at, len).map(<[u8]>::to_vec)
    }

    /// The next record or the next stretch of damage.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        let start = self.at;
        let head = self.head_at(start)?;
        if let Some(head) = head
            && self.fits(start, &head)
        {
            self.at = start + RECORD_HEAD as u64 + u64::from(head.len);
            self.least = head.lsn + 1;
            let payload = self.bytes(start + RECORD_HEAD as u64, u64::from(head.len))?;
            if crc32c::crc32c(&payload) == head.payload_crc {
                return Ok(Step::Record(head, payload));
            }
            return Ok(Step::Damage { at: start, len: self.at - start, torn: false });
        }
        self.at = self.resync(start + 1)?;
        let reaches_end = self.at == self.end;
        let unfinished = head.is_some() || self.end - start < RECORD_HEAD as u64;
        let torn = reaches_end && (unfinished || self.blank(start)?);
        Ok(Step::Damage { at: start, len: self.at - start, torn })
    }

    fn fits(&self, at: u64, head: &Head) -> bool {
        at + RECORD_HEAD as u64 + u64::from(head.len) <= self.end
    }

    fn head_at(&mut self, at: u64) -> io::Result<Option<Head>> {
        if self.end - at < RECORD_HEAD as u64 {
            return Ok(None);
        }
        let (seed, least) = (self.seed, self.least);
        Ok(parse_head(self.peek(at, RECORD_HEAD)?, seed).filter(|head| head.lsn >= least))
    }

    fn resync(&mut self, from: u64) -> io::Result<u64> {
        let mut at = from;
        while at + RECORD_HEAD as u64 <= self.end {
            let len = (self.end - at).min(CHUNK);
            let chunk = self.peek(at, usize::try_from(len).map_err(io::Error::other)?)?;
            let Some(found) = chunk.windows(RECORD_MAGIC.len()).position(|part| part == RECORD_MAGIC) else {
                at += len - 3;
                continue;
            };
            at += found as u64;
            if self.sound_at(at)? {
                return Ok(at);
            }
            at += 1;
        }
        Ok(self.end)
    }

    fn sound_at(&mut self, at: u64) -> io::Result<bool> {
        let Some(head) = self.head_at(at)? else { return Ok(false) };
        if !self.fits(at, &head) {
            return Ok(false);
        }
        let payload = self.peek(at + RECORD_HEAD as u64, head.len as usize)?;
        Ok(crc32c::crc32c(payload) == head.payload_crc)
    }

    fn blank(&mut self, from: u64) -> io::Result<bool> {
        let mut at = from;
        while at < self.end {
            let len = (self.end - at).min(CHUNK);
            let chunk = self.peek(at, usize::try_from(len).map_err(io::Error::other)?)?;
            if chunk.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Reads sector by sector; one that the disk no longer gives counts as zeros, which are no record.
    fn read_what_can_be_read(&mut self, at: u64) {
        let mut from = at;
        for sector in self.chunk.chunks_mut(SECTOR) {
            if self.file.read_exact_at(sector, from).is_err() {
                sector.fill(0);
            }
            from += sector.len() as u64;
        }
    }

    fn peek(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let held_to = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + len as u64 > held_to {
            let want = (self.end - at).min(CHUNK.max(len as u64));
            self.chunk.resize(usize::try_from(want).map_err(io::Error::other)?, 0);
            self.chunk_at = at;
            if self.file.read_exact_at(&mut self.chunk, at).is_err() {
                self.read_what_can_be_read(at);
            }
        }
        let from = usize::try_from(at - self.chunk_at).map_err(io::Error::other)?;
        self.chunk.get(from..from + len).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&segment_head(Uuid::nil(), 1)).expect("written");
        file.write_all(bytes).expect("written");
        file
    }

    fn steps(bytes: &[u8]) -> Vec<Step> {
        let mut scanner =
            Scanner::new(file(bytes), seed_of(Uuid::nil()), 1, SEGMENT_HEAD + bytes.len() as u64);
        let mut all = Vec::new();
        loop {
            match scanner.step().expect("read") {
                Step::End => return all,
                step => all.push(step),
            }
        }
    }

    fn three() -> Vec<u8> {
        let mut out = Vec::new();
        for lsn in 1..=3_u64 {
            push_record(&mut out, seed_of(Uuid::nil()), lsn, lsn * 10, &[u8::try_from(lsn).unwrap_or(0); 50]);
        }
        out
    }

    #[test]
    fn what_was_pushed_is_found() {
        let found = steps(&three());
        assert_eq!(found.len(), 3);
        assert!(matches!(&found[2], Step::Record(head, payload)
            if head.lsn == 3 && head.spent == 30 && payload == &[3; 50]));
    }

    #[test]
    fn any_flipped_bit_costs_one_record_and_no_wrong_one_is_taken() {
        let whole = three();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let sound = steps(&bytes)
                .iter()
                .filter(|step| match step {
                    Step::Record(head, payload) => {
                        assert!(payload.iter().all(|byte| u64::from(*byte) == head.lsn), "bit {bit}");
                        true
                    }
                    Step::Damage { .. } | Step::End => false,
                })
                .count();
            assert_eq!(sound, 2, "bit {bit}");
        }
    }

    #[test]
    fn a_cut_at_any_byte_of_the_last_record_looks_torn() {
        let whole = three();
        let two = whole.len() / 3 * 2;
        for cut in two + 1..whole.len() {
            let found = steps(&whole[..cut]);
            assert_eq!(found.len(), 3, "cut {cut}");
            assert!(matches!(found[2], Step::Damage { torn: true, .. }), "cut {cut}");
        }
    }

    #[test]
    fn a_record_inside_a_text_of_another_log_is_not_believed() {
        let mut inner = Vec::new();
        push_record(&mut inner, seed_of(Uuid::max()), 9, 0, b"forged");
        let mut bytes = three();
        bytes.splice(0..4, inner);
        assert!(steps(&bytes).iter().all(|step| !matches!(step, Step::Record(head, _) if head.lsn == 9)));
    }
}
