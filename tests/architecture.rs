//! Who may know whom: what each crate depends on, and what each file names, as the parser sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, ExprMethodCall, Item, ItemMod, ItemUse, Macro, UseTree,
    visit::{self, Visit},
};

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && let Some((name, _)) = line.split_once(['.', '=']) {
            names.insert(name.trim().to_owned());
        }
    }
    assert!(!names.is_empty(), "{manifest} has no dependencies");
    names
}

/// The Rust files of a directory, tests included, other crates inside it excluded.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let start = root().join(directory);
    let mut folders = vec![start.clone()];
    while let Some(folder) = folders.pop() {
        if folder != start && folder.join("Cargo.toml").exists() {
            continue;
        }
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{directory} is empty");
    found
}

/// Asserts that no file of `directory` has one of these words in its code. For words inside of strings.
fn assert_absent(directory: &str, words: &[&str]) {
    for path in sources(directory) {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in words {
                assert!(!line.contains(word), "{}: `{word}` in `{}`", path.display(), line.trim());
            }
        }
    }
}

/// What one file names, test modules included or not.
struct Names {
    /// Paths from the crate's root (`crate::sinks::disk`) or from another crate (`std::fs`), imported or written out.
    paths: BTreeSet<String>,
    /// Names of the methods it calls.
    methods: BTreeSet<String>,
    /// Names of the macros it calls.
    macros: BTreeSet<String>,
    /// Modules of other files that are only there for tests.
    test_modules: Vec<String>,
    /// The module that is being read, from the crate's root.
    module: Vec<String>,
    /// Whether test modules count.
    with_tests: bool,
}

impl Names {
    /// Reads `path`, a file of the crate whose root is in `crate_directory`.
    fn of(path: &Path, crate_directory: &str, with_tests: bool) -> Names {
        let within = path.strip_prefix(root().join(crate_directory)).unwrap().with_extension("");
        let mut module: Vec<String> = within.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            module.pop();
        }
        let mut names = Names {
            paths: BTreeSet::new(),
            methods: BTreeSet::new(),
            macros: BTreeSet::new(),
            test_modules: Vec::new(),
            module,
            with_tests,
        };
        names.visit_file(&syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap());
        names
    }

    /// Takes a path as it is written, and makes `super` and `self` what they stand for.
    fn path<'a>(&mut self, written: impl IntoIterator<Item = &'a str>) {
        let mut path: Vec<&str> = Vec::new();
        for part in written {
            match part {
                "self" if path.is_empty() => {
                    path = [vec!["crate"], self.module.iter().map(String::as_str).collect()].concat();
                }
                "super" => {
                    if path.is_empty() {
                        path = [vec!["crate"], self.module.iter().map(String::as_str).collect()].concat();
                    }
                    path.pop();
                }
                // The end of `use a::{self}`.
                "self" => {}
                part => path.push(part),
            }
        }
        self.paths.insert(path.join("::"));
    }

    fn use_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.use_tree(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before)),
            UseTree::Name(name) => self.path(with(&name.ident).iter().map(String::as_str)),
            UseTree::Rename(name) => self.path(with(&name.ident).iter().map(String::as_str)),
            UseTree::Glob(_) => self.path(before.iter().map(String::as_str)),
        }
    }

    /// Whether one of the paths is `name` or begins with it.
    fn has(&self, name: &str) -> bool {
        self.paths
            .iter()
            .any(|path| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
    }
}

/// Whether an item is there for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if !self.with_tests && is_for_tests(attributes) {
            if let Item::Mod(ItemMod { ident, content: None, .. }) = item {
                self.test_modules.push(ident.to_string());
            }
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.use_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // A single word is a variable, or has been imported.
        if path.segments.len() > 1 {
            let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
            self.path(parts.iter().map(String::as_str));
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.macros.insert(called.path.segments.last().unwrap().ident.to_string());
        visit::visit_macro(self, called);
        // What stands between the brackets is no syntax tree yet: paths are words with `::` between them, outside of strings.
        let text = called.tokens.to_string().replace(" :: ", "::").replace("\\\"", "");
        let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in text.split('"').step_by(2).flat_map(|code| code.split(|c| !is_of_path(c))) {
            if word.contains("::") {
                self.path(word.split("::").filter(|part| !part.is_empty()));
            }
        }
    }
}

/// What the files of a directory of the root package or of a crate name, tests included.
fn names(directory: &str) -> Vec<(PathBuf, Names)> {
    read(directory, true)
}

/// The same without what is there for tests alone.
fn without_tests(directory: &str) -> Vec<(PathBuf, Names)> {
    let mut files = read(directory, false);
    let mut for_tests = BTreeSet::new();
    for (path, names) in &files {
        let is_root = ["mod.rs", "lib.rs"].iter().any(|name| path.ends_with(name));
        let own = if is_root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
        for_tests.extend(names.test_modules.iter().map(|module| own.join(module).with_extension("rs")));
    }
    files.retain(|(path, _)| !for_tests.contains(path));
    files
}

fn read(directory: &str, with_tests: bool) -> Vec<(PathBuf, Names)> {
    let of_crate = ["src/dhis2", "actors/pacing", "actors"].into_iter().find(|root| directory.starts_with(root));
    let crate_directory = of_crate.unwrap_or("src");
    sources(directory).into_iter().map(|path| (path.clone(), Names::of(&path, crate_directory, with_tests))).collect()
}

/// Asserts that no file of `directory` names one of `forbidden`, or what is below it.
fn assert_does_not_know(directory: &str, forbidden: &[&str]) {
    for (path, names) in names(directory) {
        for name in forbidden {
            assert!(!names.has(name), "{} knows {name}", path.display());
        }
    }
}

/// Asserts that only these files of the root package name `name`.
fn assert_known_only_to(name: &str, files: &[&str]) {
    for (path, names) in names("src") {
        let within = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        let may = files.iter().any(|file| within == *file || within.starts_with(&format!("{file}/")));
        assert!(may || !names.has(name), "{} knows {name}", path.display());
    }
}

#[test]
fn engine_and_client_do_not_know_each_other() {
    assert!(!dependencies("actors/Cargo.toml").contains("dhis2"));
    assert!(!dependencies("src/dhis2/Cargo.toml").contains("harvester-actors"));
}

#[test]
fn the_stand_in_knows_nobody_so_that_client_and_stand_in_cannot_be_wrong_together() {
    let known = dependencies("tests/stand-in/Cargo.toml");
    for ours in ["dhis2", "harvester-actors", "harvester-pacing", "dhis2-harvester"] {
        assert!(!known.contains(ours), "the stand-in depends on {ours}");
    }
}

#[test]
fn pacing_depends_on_none_of_ours_and_does_no_i_o() {
    let known = dependencies("actors/pacing/Cargo.toml");
    for ours in ["dhis2", "harvester-actors", "actix", "awc"] {
        assert!(!known.contains(ours), "pacing depends on {ours}");
    }
    assert_does_not_know("actors/pacing", &["std::fs", "std::net", "tokio::net", "tokio::fs"]);
}

#[test]
fn the_engine_knows_no_http_no_file_system_and_no_screen() {
    let known = dependencies("actors/Cargo.toml");
    for foreign in ["awc", "sled", "url", "indicatif", "clap", "rustix"] {
        assert!(!known.contains(foreign), "the engine depends on {foreign}");
    }
    // It holds the files of pages that were spilled, and opens none.
    let opens =
        ["fs", "File::open", "File::create", "std::fs::OpenOptions", "std::fs::File::open", "std::fs::File::create"];
    assert_does_not_know("actors", &[&["std::net", "tokio::net", "tokio::fs", "std::fs::write"], &opens[..]].concat());
}

#[test]
fn extract_sinks_and_checkpoints_know_neither_each_other_nor_those_who_use_them() {
    let users = ["crate::cli", "crate::observe", "crate::service", "crate::assemble", "crate::ask", "crate::exit_code"];
    for (room, others) in [
        ("src/extract", vec!["crate::sinks", "crate::checkpoints"]),
        ("src/sinks", vec!["crate::extract", "crate::checkpoints", "dhis2"]),
        ("src/checkpoints", vec!["crate::extract", "crate::sinks", "dhis2"]),
    ] {
        assert_does_not_know(room, &[&users[..], &others[..]].concat());
    }
}

#[test]
fn each_foreign_crate_has_the_room_it_is_there_for() {
    for (name, rooms) in [
        ("dhis2", &["extract", "assemble.rs", "ask.rs", "job/mod.rs", "job/secret.rs", "observe/redactor.rs"][..]),
        ("dhis2_stand_in", &["cli/demo.rs"]),
        ("sled", &["checkpoints"]),
        ("clap", &["cli", "main.rs"]),
        ("indicatif", &["observe"]),
        ("ctrlc", &["service"]),
    ] {
        assert_known_only_to(name, rooms);
    }
}

#[test]
fn only_commands_and_the_observer_print() {
    let prints: BTreeSet<_> = ["print", "println", "eprint", "eprintln", "dbg"].map(str::to_owned).into();
    for directory in ["src", "src/dhis2", "actors", "actors/pacing"] {
        for (path, names) in without_tests(directory) {
            let within = path.strip_prefix(root()).unwrap();
            if within.starts_with("src/cli") || within.starts_with("src/observe") {
                continue;
            }
            let printed: Vec<_> = names.macros.intersection(&prints).collect();
            assert!(printed.is_empty(), "{} calls {printed:?}", path.display());
            for stream in ["std::io::stdout", "std::io::stderr", "io::stdout", "io::stderr"] {
                assert!(!names.has(stream), "{} knows {stream}", path.display());
            }
        }
    }
}

#[test]
fn only_the_client_knows_header_and_parameter_names() {
    let names = ["\"pageSize\"", "\"paging\"", "\"rootJunction\"", "Authorization", "X-Requested-With", "JSESSIONID"];
    for directory in ["src/extract", "src/cli", "src/observe", "src/sinks", "actors"] {
        assert_absent(directory, &names);
    }
}

#[test]
fn the_engine_names_no_flag_of_the_command_line() {
    assert_absent("actors", &["--restart", "--max-seconds", "--state-dir", "harvester run"]);
}

#[test]
fn only_last_will_sends_past_a_full_mailbox() {
    // `Addr::do_send` and `Recipient::do_send` alike.
    for (path, names) in names("actors") {
        let is_exception = path.ends_with("last_will.rs");
        assert!(is_exception || !names.methods.contains("do_send"), "{} calls do_send", path.display());
    }
}

#[test]
fn the_modules_of_the_root_package_know_each_other_in_one_direction_only() {
    let mut knows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let files = without_tests("src");
    let modules: BTreeSet<_> = files.iter().filter_map(|(_, names)| names.module.first().cloned()).collect();
    for (_, names) in &files {
        // The crate's root knows all of them, and nobody knows it.
        let Some(module) = names.module.first() else { continue };
        let known = names.paths.iter().filter_map(|path| path.strip_prefix("crate::")?.split("::").next());
        let known = known.filter(|known| known != module && modules.contains(*known)).map(str::to_owned);
        knows.entry(module.clone()).or_default().extend(known);
    }
    assert!(knows["cli"].contains("observe") && knows.len() > 8, "the imports are not seen: {knows:?}");
    // Whoever knows nobody who is left comes next.
    while !knows.is_empty() {
        let free: Vec<_> = knows.iter().filter(|(_, known)| known.is_empty()).map(|(name, _)| name.clone()).collect();
        assert!(!free.is_empty(), "these know each other in a circle, or those who do: {knows:#?}");
        for name in free {
            knows.remove(&name);
            knows.values_mut().for_each(|known| {
                known.remove(&name);
            });
        }
    }
}

#[test]
fn the_parser_sees_braced_renamed_and_written_out_paths() {
    let text = r#"
        use a::{b, c::{self, d as e}, f::*};
        use super::sibling::Thing;
        mod inner { use super::super::cousin; }
        fn f() { tracing::warn!(x = crate::deep::g(), "no::path"); let _ = crate::h::i; recipient.do_send(1); }
    "#;
    let mut names = Names {
        paths: BTreeSet::new(),
        methods: BTreeSet::new(),
        macros: BTreeSet::new(),
        test_modules: Vec::new(),
        module: vec!["room".into(), "file".into()],
        with_tests: true,
    };
    names.visit_file(&syn::parse_file(text).unwrap());
    for path in [
        "a::b",
        "a::c",
        "a::c::d",
        "a::f",
        "crate::room::sibling::Thing",
        "crate::room::cousin",
        "crate::deep::g",
        "crate::h",
    ] {
        assert!(names.has(path), "{path} is not among {:?}", names.paths);
    }
    assert!(!names.has("no::path"), "{:?}", names.paths);
    assert!(names.methods.contains("do_send") && names.macros.contains("warn"));
}
