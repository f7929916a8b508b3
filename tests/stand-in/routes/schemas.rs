//! Answers `/api/schemas`: what collections there are, and several things that are none.

use std::fmt::Write;

use crate::answer::Answer;
use crate::collections::{COLLECTIONS, Collection, Kind};
use crate::fields::{self, Field};
use crate::request::Request;
use crate::world::World;

/// A schema without a collection of ours behind it.
struct Other {
    singular: &'static str,
    plural: &'static str,
    klass: &'static str,
    /// Its path, where it has one.
    endpoint: Option<&'static str>,
    persisted: bool,
    identifiable: bool,
    embedded: bool,
    /// First version that is known to have it.
    since: u8,
}

/// Embedded, computed or not identifiable: a client that takes them for collections asks for what is not there.
const OTHERS: &[Other] = &[
    Other {
        singular: "dataSetElement",
        plural: "dataSetElements",
        klass: "dataset.DataSetElement",
        endpoint: None,
        persisted: true,
        identifiable: false,
        embedded: true,
        since: 25,
    },
    Other {
        singular: "dataElementOperand",
        plural: "dataElementOperands",
        klass: "dataelement.DataElementOperand",
        endpoint: Some("/dataElementOperands"),
        persisted: false,
        identifiable: true,
        embedded: false,
        since: 25,
    },
    Other {
        singular: "legend",
        plural: "legends",
        klass: "legend.Legend",
        endpoint: None,
        persisted: true,
        identifiable: true,
        embedded: true,
        since: 25,
    },
    Other {
        singular: "dataValue",
        plural: "dataValues",
        klass: "datavalue.DataValue",
        endpoint: Some("/dataValues"),
        persisted: true,
        identifiable: false,
        embedded: false,
        since: 25,
    },
    Other {
        singular: "attributeValue",
        plural: "attributeValues",
        klass: "attribute.AttributeValue",
        endpoint: None,
        persisted: false,
        identifiable: false,
        embedded: true,
        since: 25,
    },
    Other {
        singular: "dataStore",
        plural: "dataStores",
        klass: "datastore.DatastoreEntry",
        endpoint: Some("/dataStore"),
        persisted: true,
        identifiable: true,
        embedded: false,
        since: 40,
    },
    Other {
        singular: "metadataVersion",
        plural: "metadataVersions",
        klass: "metadata.version.MetadataVersion",
        endpoint: Some("/metadata/version"),
        persisted: true,
        identifiable: true,
        embedded: false,
        since: 40,
    },
    Other {
        singular: "icon",
        plural: "icons",
        klass: "icon.Icon",
        endpoint: Some("/icons"),
        persisted: false,
        identifiable: false,
        embedded: false,
        since: 40,
    },
];

fn properties(world: &World, collection: &Collection) -> String {
    let dialect = &world.dialect;
    let members = collection.members_in(dialect.minor, dialect.sharing_object, dialect.old_member_order);
    let described: Vec<String> = members
        .iter()
        .map(|member| {
            let (kind, is_collection) = match member.kind {
                // Since 2.42 a value of its own kind, though written as a list.
                Kind::AttributeValues if !dialect.attribute_values_are_a_set => ("COMPLEX", false),
                Kind::Many(..)
                | Kind::List(..)
                | Kind::Children
                | Kind::Ancestors
                | Kind::SetElements(_)
                | Kind::StagesOfProgram
                | Kind::Empty
                | Kind::Translations
                | Kind::AttributeValues => ("COLLECTION", true),
                Kind::Fixed(json) if json.starts_with('[') => ("COLLECTION", true),
                Kind::Fixed(json) if json.starts_with('{') => ("COMPLEX", false),
                Kind::Fixed("true" | "false") => ("BOOLEAN", false),
                Kind::Fixed(json) if !json.starts_with('"') => ("INTEGER", false),
                Kind::One(_) | Kind::ProgramOfStage | Kind::Parent | Kind::SomeUser(_) => ("REFERENCE", false),
                Kind::Id => ("IDENTIFIER", false),
                Kind::Created | Kind::LastUpdated | Kind::OpeningDate | Kind::ClosedDate => ("DATE", false),
                Kind::Flag | Kind::Leaf => ("BOOLEAN", false),
                Kind::Level | Kind::Rank | Kind::Counter => ("INTEGER", false),
                Kind::AwkwardNumber => ("NUMBER", false),
                Kind::Href => ("URL", false),
                Kind::Sharing | Kind::Access | Kind::Geometry | Kind::UserCredentials => ("COMPLEX", false),
                _ => ("TEXT", false),
            };
            // A collection has two names: that of one item, and the one its array has in JSON.
            let names = if is_collection {
                format!(
                    "\"name\":\"{}\",\"collectionName\":\"{1}\",\"fieldName\":\"{1}\"",
                    item_name(member.name),
                    member.name
                )
            } else {
                format!("\"name\":\"{0}\",\"fieldName\":\"{0}\"", member.name)
            };
            let is_ordered = matches!(member.kind, Kind::List(..) | Kind::Ancestors)
                || matches!(member.name, "aggregationLevels" | "legendSets" | "trackedEntityTypeAttributes");
            format!(
                "{{{names},\"collection\":{is_collection},\"ordered\":{is_ordered},\"owner\":{0},\"persisted\":{0},\"simple\":{1},\"required\":false,\"unique\":{2},\"propertyType\":\"{kind}\"}}",
                member.owned(),
                member.simple(),
                matches!(member.kind, Kind::Id | Kind::Code),
            )
        })
        .collect();
    format!("[{}]", described.join(","))
}

/// What one item of a collection is called.
fn item_name(plural: &str) -> String {
    match plural {
        "children" => "child".into(),
        // Named alike in both, as in the field.
        "aggregationLevels" => plural.into(),
        _ => {
            if let Some(stem) = plural.strip_suffix("ies") {
                return format!("{stem}y");
            }
            let stem = plural.strip_suffix("es").filter(|stem| stem.ends_with("ss"));
            stem.or(plural.strip_suffix('s')).unwrap_or(plural).into()
        }
    }
}

fn schema(world: &World, base: &str, at: usize, collection: &Collection) -> String {
    let mut json = String::new();
    let _ = write!(
        json,
        "{{\"klass\":\"org.hisp.dhis.{klass}\",\"metadata\":true,\"shareable\":{shareable},\"relativeApiEndpoint\":\"/{name}\",\"name\":\"{singular}\",\
         \"displayName\":\"{label}\",\"singular\":\"{singular}\",\"plural\":\"{name}\",\"collectionName\":\"{name}\",\"apiEndpoint\":\"{base}/api/{name}\",\
         \"href\":\"{base}/api/schemas/{singular}\",\"persisted\":true,\"identifiableObject\":true,\"nameableObject\":{nameable},\"embeddedObject\":false,\
         \"translatable\":{named},\"secondaryMetadata\":{secondary},\"order\":{at},\"namespace\":\"http://dhis2.org/schema/dxf/2.0\",\"subscribableObject\":false,\"subscribable\":false,\
         \"favoritable\":true,\"dataShareable\":false,\"dataReadShareable\":false,\"dataWriteShareable\":false,\"defaultPrivate\":false,\
         \"implicitPrivateAuthority\":false,\"references\":[\"org.hisp.dhis.category.CategoryCombo\"],\"authorities\":[{{\"type\":\"DELETE\",\"authorities\":[\"F_DELETE\"]}}],\
         \"properties\":{properties}}}",
        klass = collection.klass,
        shareable = collection.shareable,
        name = collection.name,
        singular = collection.singular,
        label = collection.label,
        nameable = collection.nameable,
        named = collection.named,
        secondary = matches!(collection.name, "visualizations" | "reportTables"),
        properties = properties(world, collection),
    );
    json
}

fn other(base: &str, at: usize, other: &Other) -> String {
    let endpoint = other.endpoint.map_or_else(String::new, |path| {
        format!("\"relativeApiEndpoint\":\"{path}\",\"apiEndpoint\":\"{base}/api{path}\",")
    });
    format!(
        "{{\"klass\":\"org.hisp.dhis.{}\",\"metadata\":false,\"shareable\":false,{endpoint}\"name\":\"{1}\",\"displayName\":\"{1}\",\"singular\":\"{1}\",\"plural\":\"{2}\",\
         \"collectionName\":\"{2}\",\"href\":\"{base}/api/schemas/{1}\",\"persisted\":{3},\"identifiableObject\":{4},\"nameableObject\":false,\"embeddedObject\":{5},\
         \"translatable\":false,\"secondaryMetadata\":false,\"order\":{at},\"properties\":[]}}",
        other.klass, other.singular, other.plural, other.persisted, other.identifiable, other.embedded
    )
}

fn wanted(request: &Request) -> Vec<Field> {
    fields::parse(request.param("fields").unwrap_or("*"))
}

/// `/api/schemas`: no pager.
pub(crate) fn all(world: &World, request: &Request) -> Answer {
    let base = world.base_url(request);
    let wanted = wanted(request);
    let ours = COLLECTIONS
        .iter()
        .enumerate()
        .filter(|(_, collection)| collection.exists_in(world.dialect.minor))
        .map(|(at, collection)| (collection.singular, schema(world, &base, at * 10, collection)));
    let others = OTHERS
        .iter()
        .enumerate()
        .filter(|(_, unlisted)| unlisted.since <= world.dialect.minor)
        .map(|(at, unlisted)| (unlisted.singular, other(&base, 1000 + at, unlisted)));
    let mut all: Vec<(&str, String)> = ours.chain(others).collect();
    // Neither by name nor by order, as in the field.
    all.sort_by_key(|(singular, _)| crate::country::hash_text(singular));
    let all: Vec<String> = all.iter().map(|(_, json)| fields::select(json, &wanted)).collect();
    Answer::json(200, format!("{{\"schemas\":[{}]}}", all.join(",")).into_bytes())
        .with_header("Cache-Control", "no-cache, private")
}

/// `/api/schemas/{singular}`.
pub(crate) fn one(world: &World, request: &Request, singular: &str) -> Answer {
    let base = world.base_url(request);
    let ours = COLLECTIONS
        .iter()
        .enumerate()
        .find(|(_, collection)| collection.singular == singular && collection.exists_in(world.dialect.minor))
        .map(|(at, collection)| schema(world, &base, at * 10, collection));
    let found = ours.or_else(|| {
        OTHERS
            .iter()
            .enumerate()
            .find(|(_, unlisted)| unlisted.singular == singular && unlisted.since <= world.dialect.minor)
            .map(|(at, unlisted)| other(&base, 1000 + at, unlisted))
    });
    match found {
        Some(json) => Answer::json(200, fields::select(&json, &wanted(request)).into_bytes())
            .with_header("Cache-Control", "no-cache, private"),
        None => Answer::message(&world.dialect, 404, &format!("Type {singular} does not exist.")),
    }
}
