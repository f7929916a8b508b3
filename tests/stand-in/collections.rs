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
    /// One of these words, row after row.
    Turn(&'static [&'static str]),
    /// Root first, the parent last.
    Ancestors,
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
    /// The program that a stage belongs to, and the stages that a program has.
    ProgramOfStage,
    StagesOfProgram,
    /// `dataSetElements`: pairs of this data set and up to so many data elements; a set.
    SetElements(u32),
    /// The same JSON in every row.
    Fixed(&'static str),
    /// `[]`.
    Empty,
}

impl Kind {
    /// Whether the server holds its values in a set.
    pub(crate) fn is_set(self) -> bool {
        matches!(self, Self::Many(..) | Self::Children | Self::SetElements(_) | Self::StagesOfProgram)
    }
}

/// One member of a collection's objects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// First and last version that have it.
    pub(crate) versions: (u8, u8),
    /// Computed from other objects, whatever its kind: not in `:owner`.
    pub(crate) derived: bool,
}

impl Member {
    /// Whether `:owner` has it: what is stored with the object, not derived from others.
    pub(crate) fn owned(&self) -> bool {
        !matches!(
            self.kind,
            Kind::DisplayName | Kind::DisplayShortName | Kind::Href | Kind::Access | Kind::Leaf | Kind::Children
        ) && !self.derived
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
                | Kind::Ancestors
                | Kind::Geometry
                | Kind::UserCredentials
                | Kind::One(_)
                | Kind::Many(..)
                | Kind::List(..)
                | Kind::SetElements(_)
                | Kind::ProgramOfStage
                | Kind::StagesOfProgram
                | Kind::Empty
        ) && !matches!(self.kind, Kind::Fixed(json) if json.starts_with(['[', '{']))
    }
}

const fn m(name: &'static str, kind: Kind) -> Member {
    Member { name, kind, versions: (0, u8::MAX), derived: false }
}

/// A member that is derived from other objects.
const fn derived(name: &'static str, kind: Kind) -> Member {
    Member { derived: true, ..m(name, kind) }
}

/// A member that came with a version.
const fn since(first: u8, name: &'static str, kind: Kind) -> Member {
    Member { versions: (first, u8::MAX), ..m(name, kind) }
}

/// A member that every row of every recorded version has with this JSON.
const fn f(name: &'static str, json: &'static str) -> Member {
    m(name, Kind::Fixed(json))
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
    /// Its names can be translated.
    pub(crate) translated: bool,
    /// Its objects can carry attributes.
    pub(crate) attributed: bool,
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
        let mut all = vec![m("href", Kind::Href), m("code", Kind::Code)];
        if self.named {
            all.push(m("name", Kind::Name));
        }
        all.extend([m("created", Kind::Created), m("lastUpdated", Kind::LastUpdated)]);
        if self.translated {
            all.push(m("translations", Kind::Translations));
        }
        all.push(m(if minor >= 38 { "createdBy" } else { "user" }, Kind::SomeUser(72)));
        all.push(m("lastUpdatedBy", Kind::SomeUser(71)));
        if !sharing_object {
            if self.shareable {
                all.push(m("publicAccess", Kind::PublicAccess));
                all.push(m("userGroupAccesses", Kind::Empty));
            }
        } else if self.shareable {
            all.push(m("sharing", Kind::Sharing));
        } else {
            all.push(derived("sharing", Kind::Sharing));
        }
        if self.nameable {
            all.push(m("shortName", Kind::ShortName));
            all.push(m("description", Kind::Description));
        }
        all.extend(self.members.iter().filter(|member| (member.versions.0..=member.versions.1).contains(&minor)));
        if self.nameable {
            all.push(m("displayShortName", Kind::DisplayShortName));
        }
        if self.named {
            all.push(m("displayName", Kind::DisplayName));
        }
        all.push(m("access", Kind::Access));
        if (38..=41).contains(&minor) {
            all.push(derived("externalAccess", Kind::Fixed("false")));
            all.extend(["userGroupAccesses", "userAccesses"].map(|name| derived(name, Kind::Empty)));
        }
        if minor >= 38 {
            all.push(derived("favorites", Kind::Empty));
            all.push(derived("favorite", Kind::Fixed("false")));
            all.push(derived("user", Kind::SomeUser(72)));
        }
        all.push(m("id", Kind::Id));
        if self.attributed {
            all.push(m("attributeValues", Kind::AttributeValues));
        }
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
        translated: true,
        attributed: true,
        versions: (25, 43),
        default_id: None,
        members: &[],
    }
}

use Kind::{AwkwardNumber, Choice, Counter, Empty, Escaped, Fixed as Json, Flag, List, Many, One};
use Size::{Fixed, OrgUnits, Per};

const PERIOD_TYPES: &[&str] = &["Monthly", "Weekly", "Quarterly", "Yearly"];

/// A collection that is there in recorded versions and holds nothing unless a size is set.
const fn empty(name: &'static str, singular: &'static str, klass: &'static str, shareable: bool) -> Collection {
    Collection { versions: (40, 43), shareable, ..c(name, singular, klass, singular, Fixed(0)) }
}

/// Every collection, in import order. Members that recorded versions have are theirs (`collection-*`, with `:owner`), in
/// their order as far as it matters; what was null there is left out now and then.
pub(crate) static COLLECTIONS: &[Collection] = &[
    Collection {
        nameable: true,
        shareable: false,
        members: &[
            derived("dimensionItemType", Json("\"ORGANISATION_UNIT\"")),
            derived("legendSets", Empty),
            m("parent", Kind::Parent),
            m("children", Kind::Children),
            m("path", Kind::Path),
            m("openingDate", Kind::OpeningDate),
            m("closedDate", Kind::ClosedDate),
            m("comment", Escaped),
            derived("dataSets", Many("dataSets", 4)),
            derived("programs", Many("programs", 2)),
            m("geometry", Kind::Geometry),
            m("leaf", Kind::Leaf),
            derived("dimensionItem", Json("\"\"")),
            derived("displayFormName", Kind::DisplayName),
            derived("organisationUnitGroups", Many("organisationUnitGroups", 3)),
            derived("users", Empty),
            m("level", Kind::Level),
            derived("ancestors", Kind::Ancestors),
        ],
        ..c("organisationUnits", "organisationUnit", "organisationunit.OrganisationUnit", "Clinic", OrgUnits)
    },
    Collection {
        shareable: false,
        attributed: false,
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
        members: &[m("startDate", Kind::OpeningDate), m("organisationUnits", Many("organisationUnits", 5))],
        ..c("categoryOptions", "categoryOption", "category.CategoryOption", "Option", Per(100, 12))
    },
    Collection {
        nameable: true,
        default_id: Some("GLevLNI9wkl"),
        members: &[
            m("dataDimensionType", Choice(&["DISAGGREGATION", "ATTRIBUTE"])),
            m("dataDimension", Flag),
            m("categoryOptions", List("categoryOptions", 6)),
        ],
        ..c("categories", "category", "category.Category", "Category", Per(500, 4))
    },
    Collection {
        attributed: false,
        default_id: Some("bjDvmb4bfuf"),
        members: &[
            m("categories", List("categories", 3)),
            m("dataDimensionType", Choice(&["DISAGGREGATION", "ATTRIBUTE"])),
            m("skipTotal", Flag),
        ],
        ..c("categoryCombos", "categoryCombo", "category.CategoryCombo", "Combination", Per(500, 3))
    },
    Collection {
        shareable: false,
        default_id: Some("HllvX50cXC0"),
        members: &[
            m("categoryCombo", One("categoryCombos")),
            m("categoryOptions", Many("categoryOptions", 2)),
            m("ignoreApproval", Flag),
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
        members: &[
            m("options", List("options", 6)),
            m("valueType", Choice(&["TEXT", "INTEGER"])),
            m("version", Counter),
        ],
        ..c("optionSets", "optionSet", "option.OptionSet", "Option set", Per(200, 5))
    },
    Collection {
        shareable: false,
        members: &[m("optionSet", One("optionSets")), m("sortOrder", Counter)],
        ..c("options", "option", "option.Option", "Option", Per(10, 40))
    },
    Collection {
        nameable: true,
        members: &[
            m("legendSets", Empty),
            m("aggregationType", Choice(&["SUM", "AVERAGE", "NONE"])),
            m("valueType", Kind::Turn(&["NUMBER", "INTEGER_POSITIVE", "PERCENTAGE", "TEXT", "BOOLEAN"])),
            m("domainType", Choice(&["AGGREGATE", "TRACKER"])),
            m("aggregationLevels", Empty),
            m("zeroIsSignificant", Flag),
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
        shareable: false,
        attributed: false,
        members: &[m("factor", AwkwardNumber), m("number", Flag)],
        ..c("indicatorTypes", "indicatorType", "indicator.IndicatorType", "Indicator type", Fixed(5))
    },
    Collection {
        nameable: true,
        members: &[
            m("legendSets", Empty),
            m("annualized", Flag),
            m("indicatorType", One("indicatorTypes")),
            m("numerator", Escaped),
            f("numeratorDescription", "\"above\""),
            m("denominator", Choice(&["1", "#{abc}", "(1 + 1)"])),
            f("denominatorDescription", "\"below\""),
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
            m("legendSets", Empty),
            m("periodType", Kind::Turn(PERIOD_TYPES)),
            m("dataInputPeriods", Empty),
            m("dataSetElements", Kind::SetElements(9)),
            m("indicators", Empty),
            m("compulsoryDataElementOperands", Empty),
            m("categoryCombo", One("categoryCombos")),
            f("mobile", "false"),
            m("version", Counter),
            m("expiryDays", AwkwardNumber),
            f("timelyDays", "15"),
            f("notifyCompletingUser", "false"),
            m("openFuturePeriods", Counter),
            f("openPeriodsAfterCoEndDate", "0"),
            f("fieldCombinationRequired", "false"),
            f("validCompleteOnly", "false"),
            f("noValueRequiresComment", "false"),
            f("skipOffline", "false"),
            f("dataElementDecoration", "false"),
            f("renderAsTabs", "false"),
            f("renderHorizontally", "false"),
            f("compulsoryFieldsCompleteOnly", "false"),
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
        members: &[
            m("legendSets", Empty),
            f("aggregationType", "\"NONE\""),
            m("valueType", Choice(&["TEXT", "AGE", "PHONE_NUMBER"])),
            f("inherit", "false"),
            f("displayOnVisitSchedule", "false"),
            f("displayInListNoProgram", "false"),
            f("confidential", "false"),
            m("unique", Flag),
            f("generated", "false"),
            f("pattern", "\"\""),
            f("orgunitScope", "false"),
            f("skipSynchronization", "false"),
            since(43, "blockedSearchOperators", Empty),
            since(43, "skipAnalytics", Json("false")),
            since(43, "minCharactersToSearch", Json("0")),
            since(43, "trigramIndexable", Json("false")),
        ],
        ..c(
            "trackedEntityAttributes",
            "trackedEntityAttribute",
            "trackedentity.TrackedEntityAttribute",
            "Attribute",
            Per(500, 10),
        )
    },
    Collection {
        members: &[
            since(42, "shortName", Kind::ShortName),
            m("trackedEntityTypeAttributes", Empty),
            f("featureType", "\"NONE\""),
            f("minAttributesRequiredToSearch", "1"),
            m("maxTeiCountToReturn", Counter),
            f("allowAuditLog", "false"),
            since(43, "enableChangeLog", Json("false")),
        ],
        ..c("trackedEntityTypes", "trackedEntityType", "trackedentity.TrackedEntityType", "Type", Fixed(3))
    },
    Collection {
        nameable: true,
        members: &[
            m("version", Counter),
            m("programType", Kind::Turn(&["WITHOUT_REGISTRATION", "WITH_REGISTRATION"])),
            f("displayIncidentDate", "true"),
            f("ignoreOverdueEvents", "false"),
            f("onlyEnrollOnce", "false"),
            m("notificationTemplates", Empty),
            f("selectEnrollmentDatesInFuture", "false"),
            f("selectIncidentDatesInFuture", "false"),
            m("trackedEntityType", One("trackedEntityTypes")),
            m("categoryCombo", One("categoryCombos")),
            f("skipOffline", "false"),
            f("displayFrontPageList", "false"),
            f("useFirstStageDuringRegistration", "false"),
            f("expiryDays", "0"),
            f("completeEventsExpiryDays", "0"),
            f("openDaysAfterCoEndDate", "0"),
            f("minAttributesRequiredToSearch", "1"),
            f("maxTeiCountToReturn", "0"),
            f("accessLevel", "\"OPEN\""),
            since(42, "categoryMappings", Empty),
            since(43, "enrollmentCategoryCombo", One("categoryCombos")),
            since(43, "userRoles", Empty),
            since(43, "enableChangeLog", Json("false")),
            m("organisationUnits", Many("organisationUnits", 30)),
            m("programStages", Kind::StagesOfProgram),
            m("programSections", Empty),
            m("programTrackedEntityAttributes", Empty),
        ],
        ..c("programs", "program", "program.Program", "Programme", Per(1000, 3))
    },
    Collection {
        members: &[
            f("minDaysFromStart", "0"),
            m("program", Kind::ProgramOfStage),
            m("programStageDataElements", Empty),
            f("autoGenerateEvent", "true"),
            f("validationStrategy", "\"ON_UPDATE_AND_INSERT\""),
            f("displayGenerateEventBox", "true"),
            f("featureType", "\"NONE\""),
            f("blockEntryForm", "false"),
            f("preGenerateUID", "false"),
            f("remindCompleted", "false"),
            f("generatedByEnrollmentDate", "false"),
            f("allowGenerateNextVisit", "false"),
            f("openAfterEnrollment", "false"),
            m("sortOrder", Counter),
            f("hideDueDate", "false"),
            f("enableUserAssignment", "false"),
            f("referral", "false"),
            m("repeatable", Flag),
            m("programStageSections", Empty),
            m("notificationTemplates", Empty),
        ],
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
        attributed: false,
        members: &[
            f("description", "\"Reads\""),
            m("authorities", Json("[\"M_dhis-web-dashboard\",\"F_EXPORT_DATA\"]")),
            m("restrictions", Empty),
            derived("users", List("users", 10)),
        ],
        ..c("userRoles", "userRole", "user.UserRole", "Role", Fixed(4))
    },
    Collection {
        shareable: false,
        translated: false,
        named: false,
        members: &[
            since(42, "name", Kind::Name),
            derived("displayName", Kind::DisplayName),
            Member { versions: (38, 43), ..m("username", Kind::Username) },
            Member { versions: (25, 40), derived: true, ..m("userCredentials", Kind::UserCredentials) },
            m("email", Choice(&["a@example.org", "b@example.org"])),
            f("externalAuth", "false"),
            f("passwordLastUpdated", "\"2023-11-24T19:10:54.846\""),
            m("cogsDimensionConstraints", Empty),
            m("catDimensionConstraints", Empty),
            f("lastLogin", "\"2023-11-24T19:17:34.117\""),
            f("selfRegistered", "false"),
            f("invitation", "false"),
            f("disabled", "false"),
            f("surname", "\"Surname\""),
            f("firstName", "\"First\""),
            m("organisationUnits", Many("organisationUnits", 3)),
            m("dataViewOrganisationUnits", Many("organisationUnits", 2)),
            m("teiSearchOrganisationUnits", Empty),
            m("userRoles", Many("userRoles", 2)),
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
    Collection {
        members: &[
            m(
                "fromConstraint",
                Json(
                    "{\"relationshipEntity\":\"TRACKED_ENTITY_INSTANCE\",\"trackedEntityType\":{\"id\":\"uU0gDaTVacv\"}}",
                ),
            ),
            m(
                "toConstraint",
                Json(
                    "{\"relationshipEntity\":\"TRACKED_ENTITY_INSTANCE\",\"trackedEntityType\":{\"id\":\"uU0gDaTVacv\"}}",
                ),
            ),
            f("bidirectional", "false"),
            f("fromToName", "\"mother of\""),
            f("toFromName", "\"child of\""),
            f("referral", "false"),
        ],
        ..c("relationshipTypes", "relationshipType", "relationship.RelationshipType", "Relation", Fixed(2))
    },
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
    Collection {
        versions: (40, 43),
        translated: false,
        members: &[
            f("sqlQuery", "\"select 1\""),
            m("type", Kind::Turn(&["QUERY", "VIEW", "QUERY"])),
            f("cacheStrategy", "\"RESPECT_SYSTEM_SETTING\""),
        ],
        ..c("sqlViews", "sqlView", "sqlview.SqlView", "View", Fixed(3))
    },
    Collection {
        versions: (40, 43),
        shareable: false,
        translated: false,
        attributed: false,
        members: &[
            f("jobType", "\"DATA_STATISTICS\""),
            f("cronExpression", "\"0 0 2 ? * *\""),
            m("enabled", Flag),
            f("jobStatus", "\"SCHEDULED\""),
            f("lastExecutedStatus", "\"NOT_STARTED\""),
            since(42, "schedulingType", Json("\"CRON\"")),
        ],
        ..c("jobConfigurations", "jobConfiguration", "scheduling.JobConfiguration", "Job", Fixed(8))
    },
    empty("analyticsTableHooks", "analyticsTableHook", "analytics.AnalyticsTableHook", false),
    empty("apiToken", "apiToken", "security.apikey.ApiToken", true),
    empty("categoryOptionGroups", "categoryOptionGroup", "category.CategoryOptionGroup", true),
    empty("categoryOptionGroupSets", "categoryOptionGroupSet", "category.CategoryOptionGroupSet", true),
    empty("dashboards", "dashboard", "dashboard.Dashboard", true),
    empty("dataApprovalLevels", "dataApprovalLevel", "dataapproval.DataApprovalLevel", true),
    empty("dataApprovalWorkflows", "dataApprovalWorkflow", "dataapproval.DataApprovalWorkflow", true),
    empty("dataElementGroupSets", "dataElementGroupSet", "dataelement.DataElementGroupSet", true),
    empty("dataEntryForms", "dataEntryForm", "dataentryform.DataEntryForm", false),
    empty(
        "dataSetNotificationTemplates",
        "dataSetNotificationTemplate",
        "dataset.notifications.DataSetNotificationTemplate",
        false,
    ),
    empty("documents", "document", "document.Document", true),
    empty("eventCharts", "eventChart", "eventchart.EventChart", true),
    empty("eventFilters", "eventFilter", "programstagefilter.EventFilter", true),
    empty("eventReports", "eventReport", "eventreport.EventReport", true),
    empty("eventVisualizations", "eventVisualization", "eventvisualization.EventVisualization", true),
    empty("externalMapLayers", "externalMapLayer", "mapping.ExternalMapLayer", true),
    empty("indicatorGroupSets", "indicatorGroupSet", "indicator.IndicatorGroupSet", true),
    Collection { versions: (42, 43), ..empty("mapViews", "mapView", "mapping.MapView", false) },
    empty("maps", "map", "mapping.Map", true),
    Collection {
        versions: (42, 43),
        ..empty(
            "oAuth2AuthorizationConsents",
            "oAuth2AuthorizationConsent",
            "security.oauth2.consent.Dhis2OAuth2AuthorizationConsent",
            false,
        )
    },
    Collection {
        versions: (42, 43),
        ..empty(
            "oAuth2Authorizations",
            "oAuth2Authorization",
            "security.oauth2.authorization.Dhis2OAuth2Authorization",
            false,
        )
    },
    empty("oAuth2Clients", "oAuth2Client", "security.oauth2.OAuth2Client", false),
    empty("optionGroups", "optionGroup", "option.OptionGroup", true),
    empty("optionGroupSets", "optionGroupSet", "option.OptionGroupSet", true),
    empty("predictors", "predictor", "predictor.Predictor", false),
    empty("predictorGroups", "predictorGroup", "predictor.PredictorGroup", true),
    empty("programIndicatorGroups", "programIndicatorGroup", "program.ProgramIndicatorGroup", true),
    empty(
        "programNotificationTemplates",
        "programNotificationTemplate",
        "program.notification.ProgramNotificationTemplate",
        false,
    ),
    empty("programRules", "programRule", "programrule.ProgramRule", false),
    empty("programRuleVariables", "programRuleVariable", "programrule.ProgramRuleVariable", false),
    empty("programSections", "programSection", "program.ProgramSection", false),
    empty("programStageSections", "programStageSection", "program.ProgramStageSection", false),
    empty(
        "programStageWorkingLists",
        "programStageWorkingList",
        "programstageworkinglist.ProgramStageWorkingList",
        true,
    ),
    Collection { versions: (40, 42), ..empty("pushAnalysis", "pushAnalysis", "pushanalysis.PushAnalysis", false) },
    empty("reports", "report", "report.Report", true),
    empty("smsCommands", "smsCommand", "sms.command.SMSCommand", false),
    empty(
        "trackedEntityInstanceFilters",
        "trackedEntityInstanceFilter",
        "trackedentityfilter.TrackedEntityInstanceFilter",
        true,
    ),
    empty(
        "validationNotificationTemplates",
        "validationNotificationTemplate",
        "validation.notification.ValidationNotificationTemplate",
        false,
    ),
    empty("validationRuleGroups", "validationRuleGroup", "validation.ValidationRuleGroup", true),
];

/// The collection of this name.
pub(crate) fn position(name: &str) -> Option<usize> {
    COLLECTIONS.iter().position(|collection| collection.name == name)
}
