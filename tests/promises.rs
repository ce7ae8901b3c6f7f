//! The table at the end of the operators' page: each promise in it names a test that is there.
//!
//! What belongs here: that, and that the running text names none. What does not: what the tests
//! hold.

use std::fs;
use std::path::Path;

use xtask::page::Place;

/// All names of functions in a folder's Rust files.
fn functions(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let module = path.with_extension("");
            let module = module.file_name().unwrap().to_string_lossy().into_owned();
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            for pair in lines.windows(2) {
                if pair[0] == "#[test]"
                    && let Some(name) = pair[1].strip_prefix("fn ")
                    && let Some((name, _)) = name.split_once('(')
                {
                    found.push((module.clone(), name.to_owned()));
                }
            }
            // Those with a guest are in tables: a name, and what it stands for.
            for line in lines {
                let name = line.trim_start_matches('(').strip_prefix('"');
                if let Some((name, _)) = name.and_then(|rest| rest.split_once("\",")) {
                    found.push((module.clone(), name.to_owned()));
                }
            }
        }
    }
}

#[test]
fn each_promise_of_the_operators_page_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = Vec::new();
    functions(&root.join("tests"), &mut tests);
    functions(&root.join("src"), &mut tests);
    functions(&root.join("xtask/src"), &mut tests);
    let page = fs::read_to_string(root.join("docs/operators.md")).unwrap();
    let (text, table) = page.split_once("## What holds these promises").unwrap();
    let in_text: Vec<&str> = names(text).collect();
    assert_eq!(in_text, [""; 0], "tests are named in the table alone");
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        assert!(names(row).next().is_some(), "no test is named for {row}");
    }
    let mut promises = 0;
    for word in names(table) {
        let (module, name) = match word.split_once("::") {
            Some((module, name)) => (Some(module), name),
            None => (None, word),
        };
        promises += 1;
        assert!(
            tests.iter().any(|(in_module, test)| {
                test == name && module.is_none_or(|module| module == in_module)
            }),
            "there is no test {word}"
        );
    }
    assert!(promises > 15, "{promises}");
}

/// The names of tests among the words in backquotes.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| {
        let name = word.split_once("::").map_or(*word, |(_, name)| name);
        name.matches('_').count() >= 4 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

#[test]
fn each_block_of_the_operators_page_has_a_mark_by_which_a_test_knows_what_to_do_with_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/operators.md")).unwrap();
    let steps = xtask::page::steps(&page).unwrap();
    let of = |place| steps.iter().filter(|step| step.place == place).count();
    assert!(of(Place::Host) > 10 && of(Place::Guest) > 1 && of(Place::Terminal) > 1);
    // Those that a shell takes for a block of commands and the test does not run.
    let shown: Vec<&str> = page.split("```shell\n").skip(1).collect();
    assert!(shown.len() <= 2, "{shown:?}");
}
