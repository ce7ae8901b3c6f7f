//! Not pages: that those of the repository are found and lead somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::cargo;

/// Pages that the index need not name: itself.
const INDEX: &str = "docs/README.md";

/// All Markdown files of the checkout, from its root.
fn pages(folder: &Path, root: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            pages(&path, root, found);
        } else if kind.is_file() && name.ends_with(".md") {
            found.insert(path.strip_prefix(root).unwrap().to_owned());
        }
    }
}

/// The links of a page to other files: the file and the heading.
fn links(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            found.push((file.to_owned(), heading.to_owned()));
        }
    }
    found
}

/// The anchors of a page's headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(|it| it.is_alphanumeric() || [' ', '-', '_'].contains(it))
                .map(|it| if it == ' ' { '-' } else { it })
                .collect()
        })
        .collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn every_page_is_in_the_index_and_every_link_leads_to_a_file_and_a_heading() {
    let root = cargo::root();
    let mut all = BTreeSet::new();
    pages(root, root, &mut all);
    let mut listed = BTreeSet::new();
    let mut broken = Vec::new();
    for page in &all {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for (file, heading) in links(&text) {
            let target = if file.is_empty() {
                page.clone()
            } else {
                normal(&page.parent().unwrap().join(&file))
            };
            if page == Path::new(INDEX) {
                listed.insert(target.clone());
            }
            let there = root.join(&target);
            let is_there = match heading.as_str() {
                "" => there.exists(),
                heading => {
                    fs::read_to_string(&there).is_ok_and(|text| anchors(&text).contains(heading))
                }
            };
            if !is_there {
                broken.push(format!("{}: {file}#{heading}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "these links lead nowhere: {broken:#?}");
    let mut missing = all;
    missing.retain(|page| page != Path::new(INDEX) && !listed.contains(page));
    assert!(missing.is_empty(), "not in {INDEX}: {missing:#?}");
}
