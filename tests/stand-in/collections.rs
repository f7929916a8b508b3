//! Lists the collections of the country: their names, sizes, versions and members.

/// What a member's value is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Id,
    Code,
    Name,
    DisplayName,
    ShortName,
    DisplayShortName,
    Description,
    Created,
    LastUpdated,
    Href,
    /// `lastUpdatedBy`, `createdBy`, `user`.
    SomeUser(u64),
    Sharing,
    PublicAccess,
    Access,
    Translations,
    AttributeValues,
    Path,
    Level,
    Parent,
    Leaf,
    Children,
    OpeningDate,
    ClosedDate,
    Geometry,
    /// The place in the list, from 1.
    Rank,
    /// A small whole number.
    Counter,
    /// Numbers that only bytes keep: `1.10`, `-0.0`, `1e-7`, 23 digits.
    AwkwardNumber,
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text with characters written as `\u` escapes.
    Escaped,
    Username,
    UserCredentials,
    /// A reference to one row of another collection.
    One(&'static str),
    /// References to up to so many rows of another collection: a set, whose order nobody keeps.
    Many(&'static str, u32),
    /// The same in an order that is kept.
    List(&'static str, u32),
    Empty,
}

impl Kind {
    /// Whether the server holds its values in a set.
    pub(crate) fn is_set(self) -> bool {
        matches!(self, Self::Many(..) | Self::Children)
    }
}

/// One member of a collection's objects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// First and last version that have it.
    pub(crate) versions: (u8, u8),
}

impl Member {
    /// Whether `:owner` has it: what is stored with the object, not derived from others.
    pub(crate) fn owned(&self) -> bool {
        !matches!(
            self.kind,
            Kind::DisplayName | Kind::DisplayShortName | Kind::Href | Kind::Access | Kind::Leaf | Kind::Children
        )
    }

    /// Whether `:simple` has it: neither a reference nor an object.
    pub(crate) fn simple(&self) -> bool {
        !matches!(
            self.kind,
            Kind::SomeUser(_)
                | Kind::Sharing
                | Kind::Access
                | Kind::Translations
                | Kind::AttributeValues
                | Kind::Parent
                | Kind::Children
                | Kind::Geometry
                | Kind::UserCredentials
                | Kind::One(_)
                | Kind::Many(..)
                | Kind::List(..)
                | Kind::Empty
        )
    }
}

const fn m(name: &'static str, kind: Kind) -> Member {
    Member { name, kind, versions: (0, u8::MAX) }
}

/// How many rows a collection has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Size {
    Fixed(u32),
    /// One row per so many organisation units, at least so many rows.
    Per(u32, u32),
    OrgUnits,
}

/// One collection.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) name: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) klass: &'static str,
    pub(crate) label: &'static str,
    pub(crate) size: Size,
    pub(crate) named: bool,
    pub(crate) nameable: bool,
    pub(crate) shareable: bool,
    pub(crate) versions: (u8, u8),
    /// Id of the object called `default` that every database has, if there is one here; it is row 0.
    pub(crate) default_id: Option<&'static str>,
    pub(crate) members: &'static [Member],
}

impl Collection {
    pub(crate) fn exists_in(&self, minor: u8) -> bool {
        (self.versions.0..=self.versions.1).contains(&minor)
    }

    /// The members of its objects in the order a server of this version writes them.
    pub(crate) fn members_in(&self, minor: u8, sharing_object: bool, old_order: bool) -> Vec<Member> {
        let mut all = vec![
            m("code", Kind::Code),
            m("created", Kind::Created),
            m("lastUpdated", Kind::LastUpdated),
            m("href", Kind::Href),
        ];
        if self.named {
            all.push(m("name", Kind::Name));
        }
        all.push(m("id", Kind::Id));
        if self.nameable {
            all.push(m("shortName", Kind::ShortName));
            all.push(m("description", Kind::Description));
        }
        all.extend(self.members.iter().filter(|member| (member.versions.0..=member.versions.1).contains(&minor)));
        if self.named {
            all.push(m("displayName", Kind::DisplayName));
        }
        if self.nameable {
            all.push(m("displayShortName", Kind::DisplayShortName));
        }
        all.push(m("lastUpdatedBy", Kind::SomeUser(71)));
        all.push(m(if minor >= 38 { "createdBy" } else { "user" }, Kind::SomeUser(72)));
        if self.shareable {
            if sharing_object {
                all.push(m("sharing", Kind::Sharing));
            } else {
                all.push(m("publicAccess", Kind::PublicAccess));
                all.push(m("userGroupAccesses", Kind::Empty));
            }
        }
        all.push(m("access", Kind::Access));
        all.push(m("translations", Kind::Translations));
        all.push(m("attributeValues", Kind::AttributeValues));
        if old_order {
            let half = all.len() / 2;
            all.rotate_left(half);
        }
        all
    }
}

const fn c(
    name: &'static str,
    singular: &'static str,
    klass: &'static str,
    label: &'static str,
    size: Size,
) -> Collection {
    Collection {
        name,
        singular,
        klass,
        label,
        size,
        named: true,
        nameable: false,
        shareable: true,
        versions: (25, 43),
        default_id: None,
        members: &[],
    }
}

use Kind::{AwkwardNumber, Choice, Counter, Empty, Escaped, Flag, List, Many, One};
use Size::{Fixed, OrgUnits, Per};

/// Every collection, in import order.
pub(crate) static COLLECTIONS: &[Collection] = &[
    Collection {
        nameable: true,
        shareable: false,
        members: &[
            m("parent", Kind::Parent),
            m("path", Kind::Path),
            m("level", Kind::Level),
            m("openingDate", Kind::OpeningDate),
            m("closedDate", Kind::ClosedDate),
            m("comment", Escaped),
            m("geometry", Kind::Geometry),
            m("leaf", Kind::Leaf),
            m("children", Kind::Children),
        ],
        ..c("organisationUnits", "organisationUnit", "organisationunit.OrganisationUnit", "Clinic", OrgUnits)
    },
    Collection {
        shareable: false,
        members: &[m("level", Kind::Rank), m("offlineLevels", Counter)],
        ..c(
            "organisationUnitLevels",
            "organisationUnitLevel",
            "organisationunit.OrganisationUnitLevel",
            "Level",
            Fixed(4),
        )
    },
    Collection {
        nameable: true,
        members: &[m("symbol", Choice(&["01.png", "02.png"])), m("organisationUnits", Many("organisationUnits", 40))],
        ..c(
            "organisationUnitGroups",
            "organisationUnitGroup",
            "organisationunit.OrganisationUnitGroup",
            "Group",
            Per(200, 6),
        )
    },
    Collection {
        members: &[m("compulsory", Flag), m("organisationUnitGroups", Many("organisationUnitGroups", 4))],
        ..c(
            "organisationUnitGroupSets",
            "organisationUnitGroupSet",
            "organisationunit.OrganisationUnitGroupSet",
            "Group set",
            Fixed(3),
        )
    },
    Collection {
        nameable: true,
        default_id: Some("xYerKDKCefk"),
        members: &[m("startDate", Kind::OpeningDate)],
        ..c("categoryOptions", "categoryOption", "category.CategoryOption", "Option", Per(100, 12))
    },
    Collection {
        default_id: Some("GLevLNI9wkl"),
        members: &[
            m("dataDimension", Flag),
            m("dataDimensionType", Choice(&["DISAGGREGATION", "ATTRIBUTE"])),
            m("categoryOptions", List("categoryOptions", 6)),
        ],
        ..c("categories", "category", "category.Category", "Category", Per(500, 4))
    },
    Collection {
        default_id: Some("bjDvmb4bfuf"),
        members: &[m("skipTotal", Flag), m("categories", List("categories", 3))],
        ..c("categoryCombos", "categoryCombo", "category.CategoryCombo", "Combination", Per(500, 3))
    },
    Collection {
        shareable: false,
        default_id: Some("HllvX50cXC0"),
        members: &[
            m("ignoreApproval", Flag),
            m("categoryCombo", One("categoryCombos")),
            m("categoryOptions", Many("categoryOptions", 2)),
        ],
        ..c(
            "categoryOptionCombos",
            "categoryOptionCombo",
            "category.CategoryOptionCombo",
            "Option combination",
            Per(10, 20),
        )
    },
    Collection {
        members: &[m("valueType", Choice(&["TEXT", "INTEGER"])), m("version", Counter)],
        ..c("optionSets", "optionSet", "option.OptionSet", "Option set", Per(200, 5))
    },
    Collection {
        shareable: false,
        members: &[m("sortOrder", Counter), m("optionSet", One("optionSets"))],
        ..c("options", "option", "option.Option", "Option", Per(10, 40))
    },
    Collection {
        nameable: true,
        members: &[
            m("valueType", Choice(&["NUMBER", "INTEGER_POSITIVE", "TEXT", "BOOLEAN", "PERCENTAGE"])),
            m("domainType", Choice(&["AGGREGATE", "TRACKER"])),
            m("aggregationType", Choice(&["SUM", "AVERAGE", "NONE"])),
            m("zeroIsSignificant", Flag),
            m("aggregationLevels", Empty),
            m("categoryCombo", One("categoryCombos")),
        ],
        ..c("dataElements", "dataElement", "dataelement.DataElement", "Data element", Per(20, 30))
    },
    Collection {
        nameable: true,
        members: &[m("dataElements", Many("dataElements", 20))],
        ..c("dataElementGroups", "dataElementGroup", "dataelement.DataElementGroup", "Data element group", Per(200, 5))
    },
    Collection {
        members: &[m("factor", AwkwardNumber), m("number", Flag)],
        ..c("indicatorTypes", "indicatorType", "indicator.IndicatorType", "Indicator type", Fixed(5))
    },
    Collection {
        nameable: true,
        members: &[
            m("numerator", Escaped),
            m("denominator", Choice(&["1", "#{abc}", "(1 + 1)"])),
            m("annualized", Flag),
            m("indicatorType", One("indicatorTypes")),
        ],
        ..c("indicators", "indicator", "indicator.Indicator", "Indicator", Per(50, 10))
    },
    Collection {
        members: &[m("indicators", Many("indicators", 10))],
        ..c("indicatorGroups", "indicatorGroup", "indicator.IndicatorGroup", "Indicator group", Fixed(4))
    },
    Collection {
        nameable: true,
        members: &[
            m("periodType", Choice(&["Monthly", "Quarterly", "Yearly", "Weekly"])),
            m("openFuturePeriods", Counter),
            m("expiryDays", AwkwardNumber),
            m("categoryCombo", One("categoryCombos")),
            m("organisationUnits", Many("organisationUnits", 25)),
        ],
        ..c("dataSets", "dataSet", "dataset.DataSet", "Data set", Per(500, 5))
    },
    Collection {
        members: &[m("sortOrder", Counter), m("dataSet", One("dataSets")), m("dataElements", List("dataElements", 8))],
        shareable: false,
        ..c("sections", "section", "dataset.Section", "Section", Per(500, 6))
    },
    Collection {
        nameable: true,
        members: &[m("valueType", Choice(&["TEXT", "AGE", "PHONE_NUMBER"])), m("unique", Flag)],
        ..c(
            "trackedEntityAttributes",
            "trackedEntityAttribute",
            "trackedentity.TrackedEntityAttribute",
            "Attribute",
            Per(500, 10),
        )
    },
    Collection {
        members: &[m("maxTeiCountToReturn", Counter)],
        ..c("trackedEntityTypes", "trackedEntityType", "trackedentity.TrackedEntityType", "Type", Fixed(3))
    },
    Collection {
        nameable: true,
        members: &[
            m("programType", Choice(&["WITH_REGISTRATION", "WITHOUT_REGISTRATION"])),
            m("trackedEntityType", One("trackedEntityTypes")),
            m("organisationUnits", Many("organisationUnits", 30)),
        ],
        ..c("programs", "program", "program.Program", "Programme", Per(1000, 3))
    },
    Collection {
        members: &[m("sortOrder", Counter), m("repeatable", Flag), m("program", One("programs"))],
        ..c("programStages", "programStage", "program.ProgramStage", "Stage", Per(500, 6))
    },
    Collection {
        nameable: true,
        members: &[m("expression", Escaped), m("decimals", AwkwardNumber), m("program", One("programs"))],
        ..c("programIndicators", "programIndicator", "program.ProgramIndicator", "Programme indicator", Per(500, 4))
    },
    Collection {
        named: false,
        shareable: false,
        members: &[m("programRuleActionType", Choice(&["HIDEFIELD", "SHOWWARNING"])), m("data", Escaped)],
        ..c("programRuleActions", "programRuleAction", "programrule.ProgramRuleAction", "Action", Per(500, 8))
    },
    Collection {
        members: &[m("authorities", Empty), m("users", List("users", 10))],
        ..c("userRoles", "userRole", "user.UserRole", "Role", Fixed(4))
    },
    Collection {
        shareable: false,
        members: &[
            Member { name: "username", kind: Kind::Username, versions: (38, 43) },
            Member { name: "userCredentials", kind: Kind::UserCredentials, versions: (25, 40) },
            m("email", Choice(&["a@example.org", "b@example.org"])),
            m("organisationUnits", Many("organisationUnits", 3)),
        ],
        ..c("users", "user", "user.User", "User", Per(100, 5))
    },
    Collection {
        members: &[m("users", Many("users", 12))],
        ..c("userGroups", "userGroup", "user.UserGroup", "User group", Fixed(5))
    },
    Collection {
        members: &[m("value", AwkwardNumber)],
        ..c("constants", "constant", "constant.Constant", "Constant", Fixed(12))
    },
    Collection {
        members: &[m("legends", Empty)],
        ..c("legendSets", "legendSet", "legend.LegendSet", "Legend set", Fixed(4))
    },
    Collection {
        members: &[m("importance", Choice(&["LOW", "HIGH"])), m("instruction", Escaped)],
        ..c("validationRules", "validationRule", "validation.ValidationRule", "Rule", Per(100, 5))
    },
    Collection {
        members: &[m("mandatory", Flag), m("unique", Flag)],
        ..c("attributes", "attribute", "attribute.Attribute", "Attribute", Fixed(6))
    },
    Collection { ..c("relationshipTypes", "relationshipType", "relationship.RelationshipType", "Relation", Fixed(2)) },
    Collection {
        versions: (25, 33),
        ..c("reportTables", "reportTable", "reporttable.ReportTable", "Report table", Fixed(3))
    },
    Collection {
        versions: (34, 43),
        ..c("visualizations", "visualization", "visualization.Visualization", "Visualisation", Fixed(9))
    },
    Collection {
        versions: (39, 43),
        ..c(
            "aggregateDataExchanges",
            "aggregateDataExchange",
            "dataexchange.aggregate.AggregateDataExchange",
            "Exchange",
            Fixed(2),
        )
    },
    Collection { versions: (40, 43), shareable: false, ..c("routes", "route", "route.Route", "Route", Fixed(1)) },
    Collection { versions: (40, 43), ..c("eventHooks", "eventHook", "eventhook.EventHook", "Hook", Fixed(0)) },
];

/// The collection of this name.
pub(crate) fn position(name: &str) -> Option<usize> {
    COLLECTIONS.iter().position(|collection| collection.name == name)
}
