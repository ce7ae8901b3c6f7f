//! Values of the file, each by its key.
//!
//! What belongs here: that a section has the keys it may have and those it must have, that each value
//! is of its kind and within its bounds, and what was probably meant. All of it is told by the table
//! in [`super::keys`]. What does not: checks that need more than one value (see [`super`]).

#[cfg(test)]
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Choice, Described, FILE, Flag, Integer, Key, Kind, Need, Section, Text};
use super::problem::{Problem, Severity, Source};

/// More problems than these are only counted.
const MAX_PROBLEMS: usize = 100;
/// The most characters of a value in a sentence.
const MAX_VALUE_CHARACTERS: usize = 80;
/// How alike two words must be so that one is taken for the other, misspelt.
const ALIKE: f64 = 0.85;

/// A value and where it is.
pub struct Found<V> {
    pub value: V,
    pub place: Range<usize>,
}

/// A section of the file.
pub struct Fields<'a> {
    section: &'static Section,
    table: Option<&'a DeTable<'a>>,
    header: Range<usize>,
    /// In sentences: `core 0 (name "echo")`; empty for the file.
    place: String,
    /// In sentences, in front of a key: `recovery.`.
    prefix: &'static str,
    /// For programs: `core[0].recovery`.
    path: String,
    /// Keys that must be there, and are there misspelt.
    misspelt: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// What comes in front of a sentence about it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The path of one of its keys.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Where it begins.
    pub fn header(&self) -> Range<usize> {
        self.header.clone()
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table?.get(key)
    }

    /// The beginning of a sentence about a key.
    fn about(&self, key: &str) -> String {
        let prefix = self.prefix;
        if self.place.is_empty() {
            format!("{prefix}{key}")
        } else {
            format!("{}: {prefix}{key}", self.place)
        }
    }
}

/// Reads a file, and notes every problem on the way. What it returns is only good if there was none.
pub struct Reader {
    pub source: Source,
    problems: Vec<Problem>,
    left_out: usize,
    /// Which keys were asked for: a key of the table that nobody reads would be taken and do nothing.
    #[cfg(test)]
    pub asked: BTreeSet<(&'static str, &'static str)>,
}

impl Reader {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            problems: Vec::new(),
            left_out: 0,
            #[cfg(test)]
            asked: BTreeSet::new(),
        }
    }

    /// The problems in the order of the file.
    pub fn finish(mut self) -> (Source, Vec<Problem>) {
        self.problems.sort_by_key(|it| (it.line, it.column));
        if self.left_out > 0 {
            let what = format!("{} more problems are not shown", self.left_out);
            let last = self.source.problem_at(Severity::Error, "", 0..0, what);
            self.problems.push(last);
        }
        (self.source, self.problems)
    }

    /// Whether there are enough problems; one more is counted then. Asked before a problem is made,
    /// since finding its line takes as long as the file is.
    fn is_full(&mut self) -> bool {
        let is_full = self.problems.len() >= MAX_PROBLEMS;
        self.left_out += usize::from(is_full);
        is_full
    }

    /// Notes a problem.
    pub fn problem(&mut self, key: &str, place: Range<usize>, what: String) {
        if self.is_full() {
            return;
        }
        let problem = self.source.problem_at(Severity::Error, key, place, what);
        self.problems.push(problem);
    }

    /// Notes a value that cannot be used; `why` goes on after the key.
    pub fn refuse<V>(&mut self, fields: &Fields, key: &str, found: &Found<V>, why: &str) {
        if self.is_full() {
            return;
        }
        let what = format!("{} {why}", fields.about(key));
        let (path, place) = (fields.path(key), found.place.clone());
        let mut problem = self
            .source
            .problem_at(Severity::Error, &path, place.clone(), what);
        problem.value = Some(self.source.at(place).to_owned());
        self.problems.push(problem);
    }

    /// Notes something about a key, which may be absent, that changes nothing.
    pub fn warn(&mut self, fields: &Fields, key: &str, why: &str) {
        if self.is_full() {
            return;
        }
        let what = format!("{} {why}", fields.about(key));
        let problem = self
            .source
            .problem(Severity::Warning, &fields.path(key), what);
        self.problems.push(problem);
    }

    /// The file itself.
    pub fn file<'a>(&mut self, table: &'a DeTable<'a>) -> Fields<'a> {
        let mut fields = Fields {
            section: &FILE,
            table: Some(table),
            header: 0..0,
            place: String::new(),
            prefix: "",
            path: String::new(),
            misspelt: Vec::new(),
        };
        self.look_for_unknown(&mut fields);
        fields
    }

    /// A section that there is once at most. `None` if it is not there.
    pub fn table<'a>(
        &mut self,
        parent: &Fields<'a>,
        section: &'static Section,
        prefix: &'static str,
    ) -> Option<Fields<'a>> {
        let value = parent.get(section.key())?;
        let (header, bare) = (section.header(), section.name);
        let (table, place) = match value.get_ref() {
            DeValue::Table(table) => (table, value.span()),
            DeValue::Array(array) => {
                let what = format!("[[{bare}]] is written with two brackets, must be {header}");
                self.problem(&parent.path(section.key()), value.span(), what);
                // What is in it is judged all the same.
                let first = array
                    .iter()
                    .find_map(|it| Some((it.get_ref().as_table()?, it)))?;
                (first.0, first.1.span())
            }
            other => {
                let what = format!("{bare} is {}, must be a section: {header}", article(other));
                self.problem(&parent.path(section.key()), value.span(), what);
                return None;
            }
        };
        let path = parent.path(section.key());
        let name = if parent.place.is_empty() {
            section.name.to_owned()
        } else {
            parent.place.clone()
        };
        Some(self.section(section, table, place, name, prefix, path))
    }

    /// The same for a section that may be absent, and has its defaults then.
    pub fn table_or_empty<'a>(
        &mut self,
        parent: &Fields<'a>,
        section: &'static Section,
        prefix: &'static str,
    ) -> Fields<'a> {
        self.table(parent, section, prefix)
            .unwrap_or_else(|| Fields {
                section,
                table: None,
                header: parent.header.clone(),
                place: parent.place.clone(),
                prefix,
                path: parent.path(section.key()),
                misspelt: Vec::new(),
            })
    }

    /// A section that there may be several of; `name` says how one is called in sentences.
    pub fn tables<'a>(
        &mut self,
        parent: &Fields<'a>,
        section: &'static Section,
        name: impl Fn(usize, &DeTable<'a>) -> String,
    ) -> Vec<Fields<'a>> {
        let Some(value) = parent.get(section.key()) else {
            return Vec::new();
        };
        let (header, bare) = (section.header(), section.name);
        let single;
        let elements: Vec<&'a Spanned<DeValue<'a>>> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            DeValue::Table(_) => {
                let what = format!(
                    "[{bare}] must be {header}, with two brackets: there may be several, and each \
                     begins with that line"
                );
                let path = parent.path(section.key());
                self.problem(&path, value.span(), what);
                single = value;
                vec![single]
            }
            other => {
                let what = format!("{bare} is {}, must be a section: {header}", article(other));
                let path = parent.path(section.key());
                self.problem(&path, value.span(), what);
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (index, element) in elements.into_iter().enumerate() {
            let path = format!("{}[{index}]", parent.path(section.key()));
            let Some(table) = element.get_ref().as_table() else {
                let what = format!(
                    "{bare} {index} is {}, must be a section: {header}",
                    article(element.get_ref())
                );
                self.problem(&path, element.span(), what);
                continue;
            };
            let mut place = name(index, table);
            if !parent.place.is_empty() {
                place = format!("{}, {place}", parent.place);
            }
            found.push(self.section(section, table, element.span(), place, "", path));
        }
        found
    }

    fn section<'a>(
        &mut self,
        section: &'static Section,
        table: &'a DeTable<'a>,
        header: Range<usize>,
        place: String,
        prefix: &'static str,
        path: String,
    ) -> Fields<'a> {
        self.source.note(path.clone(), header.clone());
        let mut fields = Fields {
            section,
            table: Some(table),
            header,
            place,
            prefix,
            path,
            misspelt: Vec::new(),
        };
        self.look_for_unknown(&mut fields);
        fields
    }

    /// Keys that the section does not have.
    fn look_for_unknown(&mut self, fields: &mut Fields<'_>) {
        let Some(table) = fields.table else { return };
        let section = fields.section;
        for (name, value) in table {
            let text: &str = name.get_ref();
            let known = section.keys.iter().any(|key| key.name() == text)
                || section.sections.iter().any(|it| it.key() == text);
            if known {
                continue;
            }
            let is_section = match value.get_ref() {
                DeValue::Table(_) => true,
                DeValue::Array(array) => array.iter().any(|it| it.get_ref().is_table()),
                _ => false,
            };
            let what = if is_section {
                unknown_section(section, text)
            } else {
                let (what, meant) = unknown_key(section, text);
                fields.misspelt.extend(meant);
                what
            };
            let what = if fields.place.is_empty() {
                what
            } else {
                format!("{}: {what}", fields.place)
            };
            self.problem(&fields.path(text), name.span(), what);
        }
    }

    /// A key's value, of whatever type.
    fn raw<'a>(
        &mut self,
        fields: &Fields<'a>,
        key: &dyn Described,
    ) -> Option<&'a Spanned<DeValue<'a>>> {
        #[cfg(test)]
        self.asked.insert((fields.section.name, key.name()));
        let found = fields.get(key.name());
        match found {
            Some(value) => self.source.note(fields.path(key.name()), value.span()),
            None if matches!(key.need(), Need::Required)
                && !fields.misspelt.contains(&key.name()) =>
            {
                let what = format!(
                    "{} is missing, must be {}",
                    fields.about(key.name()),
                    key.allowed()
                );
                let path = fields.path(key.name());
                self.problem(&path, fields.header.clone(), what);
            }
            None => {}
        }
        found
    }

    fn wrong_type(&mut self, fields: &Fields, key: &dyn Described, value: &Spanned<DeValue>) {
        let found = Found {
            value: (),
            place: value.span(),
        };
        let is_word = key.type_name() == "boolean" || !key.words().is_empty();
        let must = match key.type_name() {
            _ if is_word => key.allowed(),
            "integer" => format!("an integer, {}", key.allowed()),
            _ => format!("a string, {}", key.allowed()),
        };
        let written: String = self.source.at(value.span()).to_owned();
        let (is, todo) = match value.get_ref() {
            DeValue::Array(_) | DeValue::Table(_) => {
                (article(value.get_ref()).to_owned(), String::new())
            }
            DeValue::String(text) => {
                let fits = match key.type_name() {
                    "integer" => text.parse::<i64>().is_ok(),
                    _ => text == "true" || text == "false",
                };
                let todo = if fits {
                    format!("; write {text} without quotes")
                } else {
                    String::new()
                };
                (format!("the string {}", short(&written)), todo)
            }
            other => {
                let todo = if key.type_name() == "string" {
                    format!("; write it in quotes: \"{}\"", short(&written))
                } else {
                    String::new()
                };
                let kind = article(other);
                let kind = kind.split_once(' ').map_or(kind, |(_, kind)| kind);
                (format!("the {kind} {}", short(&written)), todo)
            }
        };
        self.refuse(
            fields,
            key.name(),
            &found,
            &format!("is {is}, must be {must}{todo}"),
        );
    }

    /// An integer within its bounds.
    pub fn integer(&mut self, fields: &Fields, key: &Key<Integer>) -> Option<Found<i64>> {
        let value = self.raw(fields, key)?;
        let DeValue::Integer(digits) = value.get_ref() else {
            self.wrong_type(fields, key, value);
            return None;
        };
        let place = value.span();
        let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok();
        match number.filter(|it| (key.kind.min..=key.kind.max).contains(it)) {
            Some(value) => Some(Found { value, place }),
            None => {
                let found = Found { value: (), place };
                let written = short(self.source.at(value.span()));
                let why = format!("is {written}, must be {}", key.kind.allowed());
                self.refuse(fields, key.name, &found, &why);
                None
            }
        }
    }

    /// The same, or its default.
    pub fn number(&mut self, fields: &Fields, key: &Key<Integer>) -> u64 {
        let value = match (self.integer(fields, key), key.need) {
            (Some(found), _) => found.value,
            (None, Need::Default(value)) => value,
            (None, _) => key.kind.min,
        };
        // No key has a negative minimum.
        u64::try_from(value).unwrap_or(0)
    }

    /// True or false, or its default.
    pub fn flag(&mut self, fields: &Fields, key: &Key<Flag>) -> bool {
        let default = matches!(key.need, Need::Default(true));
        let Some(value) = self.raw(fields, key) else {
            return default;
        };
        match value.get_ref() {
            DeValue::Boolean(value) => *value,
            _ => {
                self.wrong_type(fields, key, value);
                default
            }
        }
    }

    /// Text of whatever form.
    pub fn text(&mut self, fields: &Fields, key: &Key<Text>) -> Option<Found<String>> {
        let value = self.raw(fields, key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(fields, key, value);
            return None;
        };
        Some(Found {
            value: text.clone().into_owned(),
            place: value.span(),
        })
    }

    /// What one of a few words stands for.
    pub fn choice<T: Copy + PartialEq + Sync>(
        &mut self,
        fields: &Fields,
        key: &Key<Choice<T>>,
    ) -> Option<T> {
        let value = self.raw(fields, key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(fields, key, value);
            return None;
        };
        if let Some(word) = key.kind.words.iter().find(|it| it.0 == text) {
            return Some(word.1);
        }
        let found = Found {
            value: (),
            place: value.span(),
        };
        let words = key.kind.words.iter().map(|it| it.0);
        // Where there is only one it need not be guessed.
        let meant = match key.kind.words.len() {
            1 => String::new(),
            _ => closest(text, words)
                .map_or_else(String::new, |it| format!("; did you mean {it:?}?")),
        };
        let written = short(&format!("{text:?}"));
        let why = format!("is {written}, must be {}{meant}", key.kind.allowed());
        self.refuse(fields, key.name, &found, &why);
        None
    }
}

/// A sentence about a key that a section does not have, and which of its keys was meant.
fn unknown_key(section: &'static Section, name: &str) -> (String, Option<&'static str>) {
    let what = format!("there is no key {} {}", short(name), place(section));
    let keys = section.keys.iter().map(|key| key.name());
    if let Some(meant) = closest(name, keys.clone()) {
        return (format!("{what}; did you mean {meant}?"), Some(meant));
    }
    let elsewhere: Vec<_> = FILE
        .all()
        .into_iter()
        .filter(|other| other.keys.iter().any(|key| key.name() == name))
        .map(place)
        .collect();
    let rest = if elsewhere.is_empty() {
        let keys: Vec<_> = keys.collect();
        let verb = if keys.len() == 1 { "is" } else { "are" };
        format!("; there {verb} {}", keys.join(", "))
    } else {
        format!(
            " but {}; a key belongs to the section header above it",
            elsewhere.join(" and ")
        )
    };
    (what + &rest, None)
}

/// Where the keys of a section stand.
fn place(section: &Section) -> String {
    match section.name {
        "" => "at the top of the file".to_owned(),
        _ => format!("in {}", section.header()),
    }
}

/// A sentence about a section that there is not.
fn unknown_section(parent: &Section, name: &str) -> String {
    let shown = if parent.name.is_empty() {
        format!("[{}]", short(name))
    } else {
        format!("[{}.{}]", parent.name, short(name))
    };
    let all = FILE.all();
    let all = all.iter().filter(|it| !it.name.is_empty());
    match closest(name, all.clone().map(|it| it.key())) {
        Some(meant) => {
            let meant = all.clone().find(|it| it.key() == meant);
            let meant = meant.map_or_else(String::new, |it| it.header());
            format!("there is no section {shown}; did you mean {meant}?")
        }
        None => {
            let headers: Vec<_> = all.map(|it| it.header()).collect();
            format!(
                "there is no section {shown}; there are {}",
                headers.join(", ")
            )
        }
    }
}

/// The word that was probably meant.
pub fn closest<'w>(word: &str, among: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    let word = plain(word);
    let (alike, found) = among
        .map(|other| (strsim::jaro_winkler(&word, other), other))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (alike >= ALIKE).then_some(found)
}

/// Text for a sentence.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(MAX_VALUE_CHARACTERS).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

fn article(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
