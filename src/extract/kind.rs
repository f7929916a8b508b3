//! The kinds of data: what each of them makes of a job, of a partition, and of what is known of its streams.
//!
//! A new kind is a file beside this one, a variant in each of the two enums, and an arm wherever the compiler asks for one.

use harvester_actors::{
    failure::{Failure, FailureClass},
    follow::{Followed, StreamFacts},
    page::Page,
    partition::{Partition, Position, SourceIdentity},
    plan::PlanBuilder,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    deleted_objects::{self, DeletedSelection},
    metadata::MetadataSelection,
    metadata_follow, metadata_pages,
    source::{SourceContext, Unfetched},
};
use crate::job::MetadataSettings;

/// What a job wants, kind by kind.
#[derive(Clone, Debug)]
pub(crate) enum Extract {
    /// Metadata collections.
    Metadata(MetadataSettings),
}

impl Extract {
    /// Adds its streams and partitions to `plan`.
    pub(super) async fn plan(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        plan: &mut PlanBuilder<'_>,
    ) -> Result<(), Failure> {
        match self {
            Extract::Metadata(settings) => settings.plan(source, identity, plan).await,
        }
    }

    /// Whether it wants only what changed since the last complete run.
    pub(super) fn is_incremental(&self) -> bool {
        match self {
            Extract::Metadata(settings) => settings.incremental,
        }
    }
}

/// What a partition of any kind fetches, or a pass, as it is kept in the plan.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Selection {
    /// A range of a metadata collection.
    Metadata(MetadataSelection),
    /// What was deleted.
    DeletedObjects(DeletedSelection),
}

impl Selection {
    /// As the plan keeps it.
    pub(super) fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// As it was planned.
    pub(super) fn of(value: &Value) -> Result<Selection, Failure> {
        Selection::deserialize(value).map_err(|error| {
            Failure::new(FailureClass::Damaged, format!("the plan holds a partition that cannot be read: {error}"))
        })
    }

    /// Fetches the page at `position`, or splits the partition.
    pub(super) async fn fetch(
        &self,
        source: &SourceContext<'_>,
        partition: &Partition,
        position: &Position,
    ) -> Result<Page, Unfetched> {
        match self {
            Selection::Metadata(selection) => metadata_pages::fetch(source, selection, partition, position).await,
            Selection::DeletedObjects(selection) => {
                deleted_objects::fetch(source, selection, partition, position).await
            }
        }
    }

    /// Whether a page that is halved so often cannot be made any smaller.
    pub(super) fn is_smallest(&self, halvings: u32) -> bool {
        match self {
            Selection::Metadata(selection) => selection.is_smallest(halvings),
            Selection::DeletedObjects(_) => true,
        }
    }

    /// Decides what follows of what is known of a stream; `self` is the selection of its first pass.
    pub(super) async fn follow(
        &self,
        source: &SourceContext<'_>,
        facts: &StreamFacts<'_>,
    ) -> Result<Followed, Failure> {
        match self {
            Selection::Metadata(selection) => metadata_follow::follow(source, selection, facts).await,
            // Nothing counts or lists it otherwise.
            Selection::DeletedObjects(_) => Ok(Followed::default()),
        }
    }
}
