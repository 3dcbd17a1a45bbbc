//! README.md and the examples in `deploy/` against the table of settings, and docs/logging.md against the sources.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use pingfleet_settings::{AnyKey, Program, keys};

fn document(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The beginning of the README's table row of a setting: name, flag and default.
fn row(key: &dyn AnyKey) -> String {
    let flag = key.flag().map_or_else(String::new, |flag| {
        let short = flag.short.map(|letter| format!("`-{letter}`, "));
        format!("{}`{flag}`", short.unwrap_or_default())
    });
    let default = match (key.default().value(), key.default().shown()) {
        (Some(value), _) => format!("`{value}`"),
        (None, Some(description)) => description.to_owned(),
        (None, None) => "none".to_owned(),
    };
    format!("| `{}` | {flag} | {default} | ", key.name())
}

#[test]
fn the_readme_has_one_row_for_each_setting_with_its_flag_and_default() {
    let readme = document("README.md");
    let (_, table) = readme
        .split_once("| setting | flag | default | meaning |\n|---|---|---|---|\n")
        .expect("no table of settings");
    let rows: Vec<_> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .collect();
    let expected: Vec<_> = keys::all().map(row).collect();
    for (row, expected) in rows.iter().zip(&expected) {
        assert!(row.starts_with(expected), "{expected}\n{row}");
        assert!(row.len() > expected.len() + 2, "no meaning: {row}");
    }
    assert_eq!(rows.len(), expected.len(), "{expected:#?}");
}

/// A settings file that sets nothing, and shows all settings with their defaults.
fn example() -> String {
    let mut text = "\
# All settings of pingfleet. A line that begins with #key = shows a default, or <...> if there is none.
# Every program reads pingfleet.toml in its folder, or the file that --config names.
"
    .to_owned();
    let mut section = "";
    for key in keys::all() {
        let (of, name) = key.name().split_once('.').expect("section.key");
        if of != section {
            section = of;
            write!(text, "\n[{section}]\n").expect("a string");
        }
        let value = match (key.default().value(), key.default().shown()) {
            (Some(value), _) if value.parse::<f64>().is_ok() => value.to_owned(),
            (Some(value), _) => format!("{value:?}"),
            (None, shown) => format!("<{}>", shown.unwrap_or("none")),
        };
        let description = key.description();
        let variable = key.variable();
        write!(text, "# {description}. {variable}\n#{name} = {value}\n").expect("a string");
    }
    text
}

#[test]
fn the_example_of_a_settings_file_is_made_from_the_table() {
    let expected = example();
    let written = document("deploy/pingfleet.toml");
    assert_eq!(
        written, expected,
        "deploy/pingfleet.toml must be:\n{expected}"
    );
}

/// The settings of a file of environment variables, commented ones included.
fn variables(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().map(|line| {
        let line = line.trim_start_matches('#');
        line.strip_prefix("Environment=").unwrap_or(line)
    });
    lines
        .filter(|line| line.starts_with("PINGFLEET_"))
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[test]
fn the_examples_of_the_worker_set_settings_that_it_uses() {
    for name in ["deploy/ping-worker.env", "deploy/ping-worker.service"] {
        let text = document(name);
        let variables = variables(&text);
        assert!(!variables.is_empty(), "{name}");
        for (variable, value) in variables {
            let key = keys::all()
                .find(|key| key.variable() == variable)
                .unwrap_or_else(|| panic!("{name}: {variable}"));
            assert!(key.programs().contains(&Program::PingWorker), "{variable}");
            assert_eq!(key.check(value), Ok(()), "{name}: {variable}");
        }
    }
}

#[test]
fn every_variable_in_the_readme_is_a_setting() {
    let readme = document("README.md");
    let known: Vec<_> = keys::all().map(AnyKey::variable).collect();
    let words = readme.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut count = 0;
    for word in words.filter(|word| word.starts_with("PINGFLEET_") && word.contains("__")) {
        // `PINGFLEET_<SECTION>__<KEY>` is no variable, and is split at its signs.
        assert!(known.iter().any(|name| name == word), "{word}");
        count += 1;
    }
    assert!(count > 0);
}

/// All sources of a folder and those below it.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(fs::read_to_string(path).expect("a source"));
        }
    }
}

/// The messages of the lines that a source logs at info: the last text in each call of the macro.
fn info_messages(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let calls = code.split("info!(").skip(1);
    calls
        .map(|call| {
            // The call ends with its parenthesis outside of a text.
            let (mut depth, mut is_text, mut text) = (1, false, String::new());
            for c in call.chars() {
                match c {
                    '"' => {
                        is_text = !is_text;
                        if is_text {
                            text.clear();
                        }
                    }
                    _ if is_text => text.push(c),
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            // A text over two lines.
            text.replace('\\', " ")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

#[test]
fn docs_logging_lists_every_line_at_info_and_no_other() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for folder in [
        "producer/src",
        "ping-worker/src",
        "consumer-writer/src",
        "crates/broker/src",
        "crates/pingfleet/src",
        "crates/prober/src",
        "crates/settings/src",
        "crates/store/src",
    ] {
        sources(&root.join(folder), &mut found);
    }
    let logged: BTreeSet<_> = found
        .iter()
        .flat_map(|source| info_messages(source))
        .collect();
    let text = document("docs/logging.md");
    let (_, table) = text.split_once("## Lines at info").expect("a section");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| `") || line.starts_with("| a"));
    let cells: Vec<_> = rows.filter_map(|row| row.split('|').nth(2)).collect();
    let listed: BTreeSet<_> = cells
        .iter()
        .map(|cell| cell.trim().replace('\'', "`"))
        .collect();
    assert_eq!(listed.len(), cells.len(), "a line is listed twice");
    assert_eq!(
        logged
            .iter()
            .map(|text| text.replace('\'', "`"))
            .collect::<BTreeSet<_>>(),
        listed
    );
    // The control: a message that is not last, or wrapped, is found as it is printed.
    let source = "info!(a = f(b), \"one \\\n   two\");";
    assert_eq!(info_messages(source), ["one two"]);
}
