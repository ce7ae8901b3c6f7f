//! The pages' promises: each names a test, and there is one of that name.
//!
//! What belongs here: that. What does not: what the tests hold.

use std::fs;
use std::path::Path;

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
    let page = fs::read_to_string(root.join("docs/operators.md")).unwrap();
    let mut promises = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let (module, name) = match word.split_once("::") {
            Some((module, name)) => (Some(module), name),
            None => (None, word),
        };
        let is_name = name.matches('_').count() >= 4
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if !is_name {
            continue;
        }
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
