//! What a spool's directory holds when it is opened: cuts a torn tail, sets damage aside, finds what is lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use otonix_proto::v1 as pb;
use prost::Message as _;
use uuid::Uuid;

use crate::link::cursor::{State, StateFile};
use crate::link::segment::{self, SEGMENT_HEAD, Scanner, Step};
use crate::link::spool::{Inner, SegmentMeta, View, sync_dir};
use crate::link::writer::{Active, state_of};

/// Most files kept in the directory of set-aside bytes.
const MAX_ASIDE: usize = 1000;
/// Most bytes of one stretch of damage that are kept.
const MAX_ASIDE_BYTES: u64 = 256 * 1024;

/// Numbers that are lost, as ranges that neither touch nor overlap: start to end, the end not included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range.
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        while let Some((&left, &right)) = self.0.range(..=end).next_back()
            && right >= start
        {
            self.0.remove(&left);
            start = start.min(left);
            end = end.max(right);
        }
        if start < end {
            self.0.insert(start, end);
        }
    }

    /// How many numbers there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

/// Bytes that could not be read, and the numbers lost with them.
#[derive(Debug)]
struct Hurt {
    segment: PathBuf,
    at: u64,
    len: u64,
    first: u64,
    lost: u64,
}

impl Hurt {
    fn nothing(segment: &Path) -> Self {
        Self { segment: segment.to_owned(), at: 0, len: 0, first: 0, lost: 0 }
    }
}

#[derive(Debug)]
enum Tail {
    Clean,
    /// A write that did not finish begins here.
    Torn(u64),
    Damaged,
}

#[derive(Debug)]
struct Survey {
    state: State,
    segments: Vec<SegmentMeta>,
    hurt: Vec<Hurt>,
    tail: Tail,
    next: u64,
    last_id: Option<Uuid>,
    spent: u64,
}

/// A spool ready to go on.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub inner: Inner,
    pub state: StateFile,
    pub active: Option<Active>,
    pub unacked_spent: u64,
}

/// Opens what is there and makes it sound.
pub(crate) fn recover(dir: &Path) -> io::Result<Recovered> {
    let (mut file, found) = StateFile::open(&dir.join("state"))?;
    let survey = survey(dir, found)?;
    let mut lost = set_aside(dir, &survey.hurt);
    for hurt in &survey.hurt {
        lost.add(hurt.first, hurt.first + hurt.lost);
    }
    let active = go_on(&survey);
    let unacked_spent = survey.spent;
    let mut inner = inner_of(survey, lost);
    if let (Some(active), Some(last)) = (&active, inner.segments.last_mut()) {
        inner.bytes -= last.len - active.len;
        last.len = active.len;
    }
    let state = state_of(&inner.view);
    file.write(&state)?;
    file.write(&state)?;
    file.sync()?;
    sync_dir(dir)?;
    Ok(Recovered { inner, state: file, active, unacked_spent })
}

/// The same without changing anything.
pub(crate) fn look(dir: &Path) -> io::Result<Inner> {
    let path = dir.join("state");
    let found = if path.exists() { StateFile::look(&path)? } else { None };
    let survey = survey(dir, found)?;
    let mut lost = known_lost(dir);
    for hurt in &survey.hurt {
        lost.add(hurt.first, hurt.first + hurt.lost);
    }
    Ok(inner_of(survey, lost))
}

fn inner_of(survey: Survey, lost: Ranges) -> Inner {
    let state = survey.state;
    let view = View {
        log: state.log,
        epoch: state.epoch,
        base: state.base,
        acked: state.acked,
        acked_id: Some(state.acked_id).filter(|id| !id.is_nil()),
        next: survey.next,
        last_id: survey.last_id,
    };
    let bytes = survey.segments.iter().map(|segment| segment.len).sum();
    Inner { view, segments: survey.segments, bytes, lost }
}

/// The segments in order; the log that unreadable headers are thought to belong to.
fn segments_in(dir: &Path, state: Option<&State>) -> io::Result<(Vec<SegmentMeta>, Uuid)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let first =
            name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|n| n.parse::<u64>().ok());
        let Some(first) = first.filter(|first| *first > 0) else { continue };
        let file = File::open(entry.path())?;
        found.push((first, entry.path(), file.metadata()?.len(), segment::log_of(&file)?));
    }
    found.sort_by_key(|(first, ..)| *first);
    let by_headers = || found.iter().find_map(|(.., log)| *log);
    let log = state.map(|state| state.log).or_else(by_headers).unwrap_or_else(crate::clock::new_id);
    let segments = found
        .into_iter()
        .map(|(first, path, len, own)| SegmentMeta { first, path, len, log: own.unwrap_or(log) })
        .collect();
    Ok((segments, log))
}

fn survey(dir: &Path, found: Option<State>) -> io::Result<Survey> {
    let (segments, log) = segments_in(dir, found.as_ref())?;
    let before_all = segments.first().map_or(0, |segment| segment.first - 1);
    let state = found.unwrap_or_else(|| State {
        log,
        epoch: crate::clock::new_id(),
        base: before_all,
        acked: before_all,
        acked_id: Uuid::nil(),
    });
    let mut walk = Walk {
        acked: state.acked,
        expected: state.acked + 1,
        hurt: Vec::new(),
        open_end: None,
        least: 0,
        tail: Tail::Clean,
        last: None,
        spent: 0,
    };
    // A segment is of interest when the one after it does not begin before what is awaited.
    let needed = segments.iter().rposition(|segment| segment.first <= state.acked + 1).unwrap_or(0);
    if let Some(first) = segments.get(needed)
        && first.first <= state.acked
    {
        walk.expected = first.first;
    }
    for segment in &segments[needed..] {
        walk.segment(segment)?;
    }
    walk.end();
    let next = walk.expected.max(state.acked + 1);
    let tail = if walk.expected == next { walk.tail } else { Tail::Damaged };
    let last_id = walk.last.and_then(|(lsn, payload)| {
        let event = pb::Event::decode(payload.as_slice()).ok().filter(|_| lsn + 1 == next)?;
        Uuid::try_parse(&event.id).ok()
    });
    let acked_id = Some(state.acked_id).filter(|id| !id.is_nil() && state.acked + 1 == next);
    let last_id = last_id.or(acked_id);
    Ok(Survey { state, segments, hurt: walk.hurt, tail, next, last_id, spent: walk.spent })
}

struct Walk {
    acked: u64,
    expected: u64,
    hurt: Vec<Hurt>,
    /// Damage that reaches the end of the segment read last.
    open_end: Option<Hurt>,
    /// The numbers below this are taken, as far as heads without a sound payload tell.
    least: u64,
    tail: Tail,
    last: Option<(u64, Vec<u8>)>,
    spent: u64,
}

impl Walk {
    fn segment(&mut self, segment: &SegmentMeta) -> io::Result<()> {
        self.tail = Tail::Clean;
        // Damage at the end of the segment before is measured by where this one begins.
        let start = self.open_end.take().unwrap_or_else(|| Hurt::nothing(&segment.path));
        self.arrive(segment.first, start);
        let mut scanner = Scanner::new(
            File::open(&segment.path)?,
            segment::seed_of(segment.log),
            self.expected,
            segment.len,
        );
        let mut open: Option<(u64, u64)> = None;
        loop {
            match scanner.step()? {
                Step::Record(head, payload) => {
                    let (at, len) = open.take().unwrap_or((0, 0));
                    self.arrive(head.lsn, Hurt { at, len, ..Hurt::nothing(&segment.path) });
                    self.expected = head.lsn + 1;
                    if head.lsn > self.acked {
                        self.spent = self.spent.saturating_add(head.spent);
                    }
                    self.last = Some((head.lsn, payload));
                }
                Step::Damage { at, torn: true, .. } if open.is_none() => self.tail = Tail::Torn(at),
                Step::Damage { at, len, .. } => {
                    let from = open.map_or(at, |(from, _)| from);
                    open = Some((from, at + len - from));
                }
                Step::End => break,
            }
        }
        self.open_end = open.map(|(at, len)| Hurt { at, len, ..Hurt::nothing(&segment.path) });
        self.least = scanner.least();
        Ok(())
    }

    /// Damage at the very end held at least one event.
    fn end(&mut self) {
        if let Some(hurt) = self.open_end.take() {
            self.arrive((self.expected.max(self.acked + 1) + 1).max(self.least), hurt);
            self.tail = Tail::Damaged;
        }
    }

    /// Something sound begins at `lsn`: what was expected before it and is not acknowledged is lost.
    fn arrive(&mut self, lsn: u64, mut hurt: Hurt) {
        hurt.first = self.expected.max(self.acked + 1);
        hurt.lost = lsn.saturating_sub(hurt.first);
        if hurt.lost > 0 {
            self.hurt.push(hurt);
        }
        self.expected = self.expected.max(lsn);
    }
}

/// Opens the last segment for writing, unless its end cannot be trusted.
fn go_on(survey: &Survey) -> Option<Active> {
    for segment in &survey.segments {
        let _ = mend_head(segment);
    }
    let last = survey.segments.last().filter(|last| last.len >= SEGMENT_HEAD)?;
    let file = File::options().read(true).write(true).open(&last.path).ok()?;
    match survey.tail {
        Tail::Clean => Some(Active { file, len: last.len }),
        Tail::Torn(keep) => {
            file.set_len(keep).and_then(|()| file.sync_data()).ok()?;
            Some(Active { file, len: keep })
        }
        Tail::Damaged => None,
    }
}

fn mend_head(segment: &SegmentMeta) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(&segment.path)?;
    if segment.len >= SEGMENT_HEAD && segment::log_of(&file)?.is_none() {
        file.write_all_at(&segment::segment_head(segment.log, segment.first), 0)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Keeps the unreadable bytes for people to look at; what is lost is remembered by the names of the files.
fn set_aside(dir: &Path, hurt: &[Hurt]) -> Ranges {
    let aside = dir.join("damaged");
    let kept = fs::read_dir(&aside).map_or(0, Iterator::count);
    for (count, hurt) in hurt.iter().enumerate() {
        let path = aside.join(format!("{:020}-{}.bin", hurt.first, hurt.lost));
        if kept + count >= MAX_ASIDE || path.exists() {
            continue;
        }
        tracing::warn!(first = hurt.first, lost = hurt.lost, path = %path.display(), "the spool holds events that cannot be read");
        let keep = || {
            fs::create_dir_all(&aside)?;
            let len = usize::try_from(hurt.len.min(MAX_ASIDE_BYTES)).map_err(io::Error::other)?;
            let mut bytes = vec![0; len];
            File::open(&hurt.segment)?.read_exact_at(&mut bytes, hurt.at)?;
            fs::write(&path, bytes)
        };
        if let Err(error) = keep() {
            tracing::warn!(%error, "failed to set damaged bytes aside");
        }
    }
    known_lost(dir)
}

fn known_lost(dir: &Path) -> Ranges {
    let mut lost = Ranges::default();
    let Ok(entries) = fs::read_dir(dir.join("damaged")) else { return lost };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let range = name.to_str().and_then(|name| name.strip_suffix(".bin")).and_then(|name| {
            let (first, count) = name.split_once('-')?;
            Some((first.parse::<u64>().ok()?, count.parse::<u64>().ok()?))
        });
        if let Some((first, count)) = range {
            lost.add(first, first.saturating_add(count));
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_count_every_number_once(parts in proptest::collection::vec((0_u64..60, 0_u64..8), 0..30)) {
            let mut ranges = Ranges::default();
            let mut all = std::collections::BTreeSet::new();
            for (start, len) in parts {
                ranges.add(start, start + len);
                all.extend(start..start + len);
            }
            prop_assert_eq!(ranges.count(), all.len() as u64);
        }
    }
}
