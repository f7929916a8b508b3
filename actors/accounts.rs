//! How a run's streams stand: what was fetched, prepared, refused and proved, and what the manifest and the report say of it.
//!
//! Numbers add up here or the run does not end with 0: fetched = written + rejected + duplicates + filtered, per stream.

use std::collections::BTreeMap;

use crate::{
    checkpoint::Checkpoint,
    failure::Failure,
    follow::{Proof, Reconciled},
    harvest::{RunError, bug},
    page::Reject,
    partition::{PassId, Stream, StreamId, Yield},
    planner::PartitionOutcomes,
    report::{Manifest, ManifestSource, ManifestStream, Outcome, Report, ReportError, StreamReport, outcome_of},
    sink::PreparedStream,
};

/// Passes of one stream before it is believed that there will be no end of them.
const PASSES_MAX: usize = 64;

/// What is known of a run.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// The durable truth as last seen; there is one once the run is planned.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Streams that are prepared.
    pub(crate) prepared: BTreeMap<StreamId, PreparedStream>,
    /// How each stream stands that has been asked about.
    pub(crate) streams: BTreeMap<StreamId, Account>,
    /// What became of partitions that did not finish, those that give keys aside.
    pub(crate) outcomes: PartitionOutcomes,
    /// Where the next incremental run resumes, once this one is published.
    pub(crate) watermarks: BTreeMap<String, String>,
}

/// How one stream stands.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// What showed that it is complete, or that this cannot be shown; `None` as long as something may still follow.
    pub(crate) verdict: Option<Verdict>,
    /// The number of duplicates that was known when its kind was last asked what follows; `None` when it has not been.
    pub(crate) asked_with: Option<Option<u64>>,
    /// How it changed while the run went on, where a comparison has shown it.
    pub(crate) reconciled: Option<Reconciled>,
    /// What a person should know of it.
    pub(crate) warnings: Vec<String>,
    /// Passes that give keys and of which something was given up.
    pub(crate) key_failures: BTreeMap<PassId, Failure>,
}

/// What has been found out about a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is complete, as this shows.
    Proved(Proof),
    /// It may not be; why, as a sentence.
    Unproved(String),
}

impl Accounts {
    /// The checkpoint, which there is once the run is planned.
    pub(crate) fn known(&self) -> Result<&Checkpoint, RunError> {
        self.checkpoint.as_ref().ok_or_else(|| bug("the run has no checkpoint"))
    }

    /// Takes the planner's word. Keys that cannot be had leave rows unproved, not lost.
    pub(crate) fn take_outcomes(&mut self, mut outcomes: PartitionOutcomes) {
        if let Some(checkpoint) = &self.checkpoint {
            let is_key = |pass: PassId| checkpoint.plan.pass(pass).yields == Yield::Keys;
            for (_, outcome) in outcomes.failed.extract_if(.., |_, outcome| is_key(outcome.partition.pass)) {
                let pass = outcome.partition.pass;
                let account = self.streams.entry(checkpoint.plan.pass(pass).stream).or_default();
                account.key_failures.entry(pass).or_insert(outcome.failure);
            }
        }
        self.outcomes = outcomes;
    }

    /// The stream of a partition that was given up.
    fn stream_of(&self, pass: PassId) -> Option<StreamId> {
        Some(self.checkpoint.as_ref()?.plan.pass(pass).stream)
    }

    /// Whether nothing of a stream was given up.
    fn is_whole(&self, stream: StreamId) -> bool {
        let given_up = self.outcomes.failed.values().chain(self.outcomes.left_out.values());
        !given_up.map(|outcome| outcome.partition.pass).any(|pass| self.stream_of(pass) == Some(stream))
    }

    /// Whether a stream is left out as a whole.
    fn is_left_out(&self, stream: StreamId) -> bool {
        self.outcomes.left_out.values().any(|outcome| self.stream_of(outcome.partition.pass) == Some(stream))
    }

    /// Rows that were dropped because another had their key, once the stream is prepared.
    pub(crate) fn duplicates(&self, stream: StreamId) -> Option<u64> {
        self.prepared.get(&stream).map(|prepared| prepared.duplicates)
    }

    /// The streams of which nothing was given up, and whose kind has not been asked with what is known now.
    pub(crate) fn ask_about(&mut self) -> Result<Vec<StreamId>, RunError> {
        let mut asked = Vec::new();
        let ids: Vec<StreamId> = self.known()?.plan.streams().map(|(id, _)| id).collect();
        for id in ids {
            let duplicates = self.duplicates(id);
            let too_many = self.known()?.plan.passes_of(id).count() >= PASSES_MAX;
            let is_whole = self.is_whole(id);
            let account = self.streams.entry(id).or_default();
            let is_news = match account.asked_with {
                None => true,
                // Only a stream that is thought complete can be doubted.
                Some(before) => {
                    before.unwrap_or(0) != duplicates.unwrap_or(0)
                        && matches!(account.verdict, Some(Verdict::Proved(_)))
                }
            };
            if is_whole && is_news && too_many {
                account.verdict =
                    Some(Verdict::Unproved(format!("{PASSES_MAX} passes have not shown its rows complete")));
            } else if is_whole && is_news {
                asked.push(id);
            }
        }
        Ok(asked)
    }

    /// The streams that there are.
    pub(crate) fn taken(&self) -> Result<Vec<StreamId>, RunError> {
        Ok(self.known()?.plan.streams().map(|(id, _)| id).filter(|id| !self.is_left_out(*id)).collect())
    }

    /// Refuses to prepare anything where partitions have failed and no stream is whole.
    pub(crate) fn check_any_complete(&self) -> Result<(), RunError> {
        match self.outcomes.failed.values().next() {
            Some(failed) if !self.taken()?.iter().any(|stream| self.is_whole(*stream)) => {
                Err(RunError::Refused(failed.failure.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The first stream that does not add up, as a sentence.
    pub(crate) fn first_mismatch(&self) -> Result<Option<String>, RunError> {
        let checkpoint = self.known()?;
        Ok(self.taken()?.iter().find_map(|stream| self.mismatch(checkpoint, *stream)))
    }

    /// What does not add up in a stream, as a sentence.
    fn mismatch(&self, checkpoint: &Checkpoint, stream: StreamId) -> Option<String> {
        let name = &checkpoint.plan.stream(stream).name;
        let counts = checkpoint.row_totals(stream).counts;
        let prepared = self.prepared.get(&stream)?;
        let accounted = prepared.rows + counts.rejected + prepared.duplicates + counts.filtered;
        if counts.fetched != accounted {
            return Some(format!("{} rows of {name} were fetched, {accounted} are accounted for", counts.fetched));
        }
        match self.streams.get(&stream)?.verdict.as_ref()? {
            Verdict::Proved(_) => None,
            Verdict::Unproved(why) => Some(why.clone()),
        }
    }

    /// What a person should know of the streams.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.streams.values().flat_map(|account| account.warnings.iter().cloned())
    }

    /// The partitions that were given up, as lines of `rejects.ndjson`.
    pub(crate) fn failed_partitions(&self) -> impl Iterator<Item = Reject> {
        self.outcomes.failed.values().map(|outcome| Reject {
            partition: outcome.partition.key.clone(),
            class: outcome.failure.class.as_str().to_owned(),
            message: outcome.failure.message.clone(),
            id: None,
            bytes: None,
        })
    }

    /// The manifest of the files that are prepared.
    pub(crate) fn manifest(&self, finished_at: String) -> Result<Manifest, RunError> {
        let checkpoint = self.known()?;
        let header = &checkpoint.header;
        let mut streams = BTreeMap::new();
        let mut watermarks = BTreeMap::new();
        for stream in self.taken()? {
            let Some(prepared) = self.prepared.get(&stream) else { continue };
            let planned = checkpoint.plan.stream(stream);
            let counts = checkpoint.row_totals(stream).counts;
            let complete = self.is_whole(stream) && counts.rejected == 0;
            if let (Some(watermark), true) = (watermark(planned, prepared), complete) {
                watermarks.insert(planned.name.clone(), watermark.to_owned());
            }
            let proof = match self.streams.get(&stream).and_then(|account| account.verdict.as_ref()) {
                Some(Verdict::Proved(proof)) => *proof,
                Some(Verdict::Unproved(_)) | None => Proof::None,
            };
            streams.insert(
                planned.name.clone(),
                ManifestStream {
                    file: prepared.file.clone(),
                    rows: prepared.rows,
                    bytes: prepared.bytes,
                    sha256: prepared.sha256.clone(),
                    duplicates: prepared.duplicates,
                    filtered: counts.filtered,
                    rejected: counts.rejected,
                    expected: planned.expected_rows,
                    proof,
                    complete,
                },
            );
        }
        Ok(Manifest {
            version: 1,
            job: header.job.clone(),
            run_id: header.run_id.clone(),
            source: ManifestSource {
                url: header.source.url.clone(),
                system_id: header.source.system_id.clone(),
                version: header.source.version.clone(),
            },
            started_at: header.started_at.clone(),
            finished_at,
            complete: streams.values().all(|stream| stream.complete),
            watermarks,
            streams,
        })
    }

    /// The report of a run that ended so; what only the run itself knows is added by it.
    pub(crate) fn report(&self, job: &str, ended: Result<(), RunError>) -> Report {
        let mut streams = BTreeMap::new();
        let mut left_out = BTreeMap::new();
        let mut rejected = !self.outcomes.failed.is_empty();
        if let Some(checkpoint) = &self.checkpoint {
            let plan = &checkpoint.plan;
            left_out.extend(plan.left_out.iter().map(|left| (left.stream.clone(), left.reason.clone())));
            for outcome in self.outcomes.left_out.values() {
                let stream = plan.stream(plan.pass(outcome.partition.pass).stream);
                left_out.insert(stream.name.clone(), outcome.failure.message.clone());
            }
            for (id, stream) in plan.streams().filter(|(id, _)| !self.is_left_out(*id)) {
                let report = self.stream_report(checkpoint, id);
                rejected |= report.rejected > 0;
                streams.insert(stream.name.clone(), report);
            }
        }
        let (outcome, error) = match ended.err() {
            None if rejected => (Outcome::Rejected, Some(self.rejected_error())),
            None => (Outcome::Complete, None),
            Some(RunError::Failed(failure)) => (outcome_of(failure.class), Some(failure.into())),
            Some(RunError::Refused(failure)) => (Outcome::Refused, Some(failure.into())),
            Some(RunError::Stopped(stop)) => {
                (stop.outcome, Some(error("stopped", format!("stopped by {}", stop.reason))))
            }
            Some(RunError::Mismatch(message)) => (Outcome::Mismatch, Some(error("mismatch", message))),
        };
        let run_id = self.checkpoint.as_ref().map(|checkpoint| checkpoint.header.run_id.clone());
        Report {
            run_id: run_id.unwrap_or_default(),
            streams,
            error,
            left_out,
            watermarks: self.watermarks.clone(),
            ..Report::new(job, outcome, 0)
        }
    }

    /// The numbers of one stream.
    fn stream_report(&self, checkpoint: &Checkpoint, id: StreamId) -> StreamReport {
        let totals = checkpoint.row_totals(id);
        let prepared = self.prepared.get(&id);
        let reconciled = self.streams.get(&id).and_then(|account| account.reconciled);
        StreamReport {
            rows: prepared.map_or(totals.counts.kept, |prepared| prepared.rows),
            bytes: prepared.map_or(totals.counts.bytes, |prepared| prepared.bytes),
            pages: totals.pages,
            duplicates: prepared.map_or(0, |prepared| prepared.duplicates),
            filtered: totals.counts.filtered,
            rejected: totals.counts.rejected,
            expected: checkpoint.plan.stream(id).expected_rows,
            appeared: reconciled.map(|reconciled| reconciled.appeared),
            vanished: reconciled.map(|reconciled| reconciled.vanished),
        }
    }

    /// What to say of a run that is published but not complete.
    fn rejected_error(&self) -> ReportError {
        let message = match self.outcomes.failed.values().next() {
            Some(outcome) => outcome.failure.message.clone(),
            None => "some rows could not be taken".to_owned(),
        };
        error("rejected", message)
    }
}

/// An error of a run that is not a failure of a port.
fn error(class: &str, message: String) -> ReportError {
    ReportError { class: class.to_owned(), message, next: String::new() }
}

/// Where the next incremental run of a stream resumes: the source's time when this run began or that of the newest
/// row, whichever is earlier. A clock that was ahead for a moment then hides no change. Both are the source's local time,
/// year first, so the earlier one is the lesser text. A stream without rows says nothing: what is known of it stays.
fn watermark<'a>(stream: &'a Stream, prepared: &'a PreparedStream) -> Option<&'a str> {
    let began = stream.watermark.as_deref()?;
    if !harvester_pacing::control!("watermark-bounds") {
        return Some(began);
    }
    let newest = prepared.newest.as_deref().unwrap_or(began);
    (prepared.rows > 0).then(|| newest.min(began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_the_earlier_of_the_beginning_and_the_newest_row() {
        let began = "2024-05-01T08:00:00.000";
        for (planned, rows, newest, expected) in [
            (Some(began), 2, Some("2024-04-01T00:00:00.000"), Some("2024-04-01T00:00:00.000")),
            (Some(began), 2, Some("2024-05-01T08:00:00.001"), Some(began)),
            (Some(began), 2, Some("2034-05-01T08:00:00"), Some(began)),
            (Some(began), 2, None, Some(began)),
            (Some(began), 0, None, None),
            (None, 2, Some("2024-04-01T00:00:00.000"), None),
        ] {
            let stream = Stream {
                name: String::new(),
                expected_rows: None,
                optional: false,
                watermark: planned.map(str::to_owned),
            };
            let prepared = PreparedStream {
                file: String::new(),
                rows,
                bytes: 0,
                sha256: String::new(),
                duplicates: 0,
                newest: newest.map(str::to_owned),
            };
            assert_eq!(watermark(&stream, &prepared), expected, "{planned:?}, {rows} rows, {newest:?}");
        }
    }
}
