//! Plots as SVG.
//!
//! What belongs here: lines over logarithmic axes, and their labels. What does not: which lines.

use std::fmt::Write as _;

/// One line of a plot.
pub struct Line {
    /// What it is.
    pub name: String,
    /// Where it goes through; both above 0.
    pub points: Vec<(f64, f64)>,
}

/// A plot whose both axes are logarithmic.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it.
    pub across: &'a str,
    /// At its side.
    pub up: &'a str,
    /// What is in it.
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 420.0;
/// Told apart by those who see few colours, on white.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888",
];

/// Lowest and highest of some numbers, a little apart.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for value in values.filter(|value| *value > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    (high > 0.0).then(|| (low / 1.3, high * 1.3))
}

/// A number as it stands at an axis.
fn label(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e3 => format!("{} k", value / 1e3),
        value => format!("{value}"),
    }
}

/// 1, 2 and 5 of each power of ten between two numbers.
fn marks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let few = high / low > 1000.0;
    powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
        .filter(|mark| !few || mark.log10().fract().abs() < 1e-9)
        .filter(|mark| (low..=high).contains(mark))
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl Plot<'_> {
    /// The whole file; nothing if there is nothing in it.
    pub fn svg(&self) -> Option<String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (left, right) = range(points().map(|point| point.0))?;
        let (bottom, top) = range(points().map(|point| point.1))?;
        let place = |value: f64, low: f64, high: f64| (value / low).ln() / (high / low).ln();
        let x = |value: f64| LEFT + (RIGHT - LEFT) * place(value, left, right);
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * place(value, bottom, top);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">{}</text>\n",
            escape(self.title)
        );
        let mut put = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        for mark in marks(bottom, top) {
            let at = y(mark);
            put(format!(
                "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(mark)
            ));
        }
        // What was measured, and nothing between.
        let mut across: Vec<f64> = points().map(|point| point.0).collect();
        across.sort_by(f64::total_cmp);
        across.dedup();
        for mark in across {
            let at = x(mark);
            put(format!(
                "<path d=\"M{at:.1} {TOP}V{BOTTOM}\" stroke=\"#eee\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 18.0,
                label(mark)
            ));
        }
        put(format!(
            "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" stroke=\"#333\" fill=\"none\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(22 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + RIGHT) / 2.0,
            BOTTOM + 42.0,
            escape(self.across),
            (TOP + BOTTOM) / 2.0,
            escape(self.up)
        ));
        // A line has its colour also where another is missing.
        let lines = self.lines.iter().zip(COLOURS.iter().cycle());
        let drawn = lines.filter(|(line, _)| !line.points.is_empty());
        for (index, (line, colour)) in drawn.enumerate() {
            let mut path = String::new();
            for (number, (across, up)) in line.points.iter().enumerate() {
                let letter = if number == 0 { 'M' } else { 'L' };
                let (x, y) = (x(*across), y(*up));
                // Writing to a String cannot fail.
                let _ = write!(path, "{letter}{x:.1} {y:.1}");
                put(format!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"
                ));
            }
            let at = TOP + 12.0 + 22.0 * index as f64;
            put(format!(
                "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>\
                 <path d=\"M{:.1} {at:.1}h22\" stroke=\"{colour}\" stroke-width=\"3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                RIGHT + 16.0,
                RIGHT + 44.0,
                at + 4.0,
                escape(&line.name)
            ));
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_of_nothing_is_none() {
        let plot = |points| Plot {
            title: "a < b",
            across: "",
            up: "",
            lines: vec![Line {
                name: "line".to_owned(),
                points,
            }],
        };
        assert_eq!(plot(Vec::new()).svg(), None);
        let svg = plot(vec![(1.0, 2.0), (256.0, 3e7)]).svg().unwrap();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn axes_have_marks_between_their_ends() {
        assert_eq!(marks(0.9, 21.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(marks(0.9, 2e4), [1.0, 10.0, 100.0, 1000.0, 10000.0]);
    }
}
