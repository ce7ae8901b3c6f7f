//! The commands of a page of the documentation, for a test that runs them as they are printed.
//!
//! What belongs here: the marks by which a page says where its commands run and what they print.
//! What does not: how they are run.
//!
//! A page is Markdown. Its fenced blocks are marked by the words after the opening fence:
//!
//! | mark | what the block is |
//! |---|---|
//! | `sh` | commands on the host; each succeeds |
//! | `sh terminal` | a command on the host that runs until it is ended, in a terminal of its own |
//! | `sh guest` | commands in the guest; each succeeds |
//! | `text` | what the block before it prints: these lines in this order, others between them; `...` stands for anything |
//! | `text soon` | the same, after a while: who follows the page tries again until it is so |
//! | anything else | not run |

use anyhow::{Result, bail, ensure};

/// Where the commands of a block run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the host, one after the other.
    Host,
    /// On the host, until it is ended.
    Terminal,
    /// In the guest, one after the other.
    Guest,
}

/// Commands, and what the page says that they print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The heading that they stand under.
    pub heading: String,
    /// The number of the block's first line on the page, from 1.
    pub line: usize,
    /// Where they run.
    pub place: Place,
    /// The block, as it is printed.
    pub commands: String,
    /// What it prints; nothing if the page does not say.
    pub prints: Option<Prints>,
}

/// What a block prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prints {
    /// The lines.
    pub lines: Vec<String>,
    /// It may take a while until it does.
    pub soon: bool,
}

impl Prints {
    /// The first of the lines that is missing in `output`.
    pub fn missing_in<'a>(&'a self, output: &str) -> Option<&'a str> {
        let mut rest = output.lines();
        self.lines
            .iter()
            .find(|wanted| !rest.any(|line| is_like(line.trim_end(), wanted)))
            .map(String::as_str)
    }
}

/// Whether `line` is `wanted`, in which `...` stands for anything.
fn is_like(line: &str, wanted: &str) -> bool {
    let parts: Vec<&str> = wanted.split("...").collect();
    let [first, middle @ .., last] = &parts[..] else {
        return line == wanted;
    };
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

/// All steps of a page, in its order.
pub fn steps(page: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut heading = String::new();
    let mut lines = page.lines().zip(1..);
    // Whether nothing but blank lines came since the last step.
    let mut follows = false;
    while let Some((line, number)) = lines.next() {
        let Some(mark) = line.strip_prefix("```") else {
            if let Some(text) = line.strip_prefix('#') {
                text.trim_start_matches('#').trim().clone_into(&mut heading);
            }
            follows = follows && line.trim().is_empty();
            continue;
        };
        let mut block = Vec::new();
        loop {
            match lines.next() {
                Some((line, _)) if line.trim_end() == "```" => break,
                Some((line, _)) => block.push(line),
                None => bail!("the block that begins in line {number} has no end"),
            }
        }
        let words: Vec<&str> = mark.split_whitespace().collect();
        let place = match words[..] {
            ["sh"] => Place::Host,
            ["sh", "terminal"] => Place::Terminal,
            ["sh", "guest"] => Place::Guest,
            ["sh", ..] => bail!("line {number}: nobody knows where a block `{mark}` runs"),
            ["text", ref more @ ..] => {
                ensure!(
                    more.is_empty() || more == ["soon"],
                    "line {number}: a block `{mark}` has no meaning"
                );
                let step = steps.last_mut().filter(|_| follows);
                if let Some(step) = step {
                    step.prints = Some(Prints {
                        lines: block
                            .iter()
                            .map(|line| line.trim_end().to_owned())
                            .collect(),
                        soon: !more.is_empty(),
                    });
                }
                follows = false;
                continue;
            }
            _ => {
                follows = false;
                continue;
            }
        };
        follows = true;
        steps.push(Step {
            heading: heading.clone(),
            line: number + 1,
            place,
            commands: block.join("\n"),
            prints: None,
        });
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Page\n## One\n```sh\na \\\n  b\nc\n```\n\n```text soon\nx ... y\nz\n```\n\
        ## Two\n```toml\nd = 1\n```\n```text\nof nothing\n```\n```sh guest\ne\n```\nwords\n\
        ```text\nof no block\n```\n```sh terminal\nf\n```\n";

    #[test]
    fn blocks_are_taken_as_they_are_printed_with_what_they_print() {
        let steps = steps(PAGE).unwrap();
        let short: Vec<_> = steps
            .iter()
            .map(|step| (&step.heading[..], step.line, step.place, &step.commands[..]))
            .collect();
        assert_eq!(
            short,
            [
                ("One", 4, Place::Host, "a \\\n  b\nc"),
                ("Two", 21, Place::Guest, "e"),
                ("Two", 28, Place::Terminal, "f"),
            ]
        );
        let prints = steps[0].prints.as_ref().unwrap();
        assert_eq!((prints.lines.len(), prints.soon), (2, true));
        assert_eq!((&steps[1].prints, &steps[2].prints), (&None, &None));
    }

    #[test]
    fn what_is_printed_is_found_in_its_order_and_no_other() {
        let prints = Prints {
            lines: vec!["x ... y".to_owned(), "z".to_owned()],
            soon: false,
        };
        assert_eq!(prints.missing_in("0\nx 1 y\n2\nz  \n"), None);
        assert_eq!(prints.missing_in("z\nx 1 y\n"), Some("z"));
        assert_eq!(prints.missing_in("x 1 y 2\nz\n"), Some("x ... y"));
        assert_eq!(prints.missing_in(""), Some("x ... y"));
    }

    #[test]
    fn a_mark_that_nobody_knows_is_refused() {
        for page in ["```sh moon\n```\n", "```text never\n```\n", "```sh\na\n"] {
            assert!(steps(page).is_err(), "{page}");
        }
    }
}
