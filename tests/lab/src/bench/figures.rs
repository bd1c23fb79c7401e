//! Results: samples of a figure, their quantiles, and the table, JSON and chart made of them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// A figure of a subject: the form every profile's results take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Which benchmark: `startup`, `boot`, `memory`.
    pub profile: String,
    /// What was measured, for example `first_instruction_ms`; the unit is its last part.
    pub figure: String,
    /// `ms` or `KiB`.
    pub unit: String,
    /// Who was measured.
    pub subject: String,
    /// How many samples.
    pub n: usize,
    /// Middle value.
    pub median: f64,
    /// Nine in ten are at or below.
    pub p90: f64,
    /// Ninety-nine in a hundred are at or below.
    pub p99: f64,
}

impl Figure {
    /// The quantiles of `samples`; `None` when there are none.
    pub fn new(profile: &str, figure: &str, unit: &str, subject: &str, mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let at = |q: f64| {
            samples
                .get(rank(samples.len(), q))
                .copied()
                .map(|v| (v * 1000.0).round() / 1000.0)
        };
        Some(Self {
            profile: profile.into(),
            figure: figure.into(),
            unit: unit.into(),
            subject: subject.into(),
            n: samples.len(),
            median: at(0.5)?,
            p90: at(0.9)?,
            p99: at(0.99)?,
        })
    }
}

/// Index of quantile `q` among `n` sorted samples (nearest rank).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank among at most thousands of samples"
)]
#[expect(clippy::cast_precision_loss, reason = "as above")]
fn rank(n: usize, q: f64) -> usize {
    ((n as f64 * q).ceil() as usize).saturating_sub(1)
}

/// A Markdown table for each figure, each subject with its ratio to husk.
pub fn markdown(figures: &[Figure]) -> String {
    let mut text = String::new();
    for name in names(figures) {
        let rows: Vec<_> = figures
            .iter()
            .filter(|f| (&f.profile, &f.figure) == (&name.0, &name.1))
            .collect();
        let husk = rows.iter().find(|f| f.subject == "husk").map(|f| f.median);
        let unit = rows.first().map_or("", |f| f.unit.as_str());
        let _ = writeln!(text, "\n### {}: {} ({unit})\n", name.0, name.1);
        let _ = writeln!(
            text,
            "| subject | n | median | p90 | p99 | husk / subject |\n|---|---|---|---|---|---|"
        );
        for row in rows {
            let ratio = husk.map_or_else(String::new, |husk| format!("{:.2}", husk / row.median));
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {ratio} |",
                row.subject, row.n, row.median, row.p90, row.p99
            );
        }
    }
    text
}

/// A chart of every figure: one bar a subject for the median, a thin line to the 90th percentile.
pub fn svg(figures: &[Figure]) -> String {
    const BAR: usize = 22;
    const WIDTH: f64 = 420.0;
    let (mut body, mut y) = (String::new(), 0);
    for name in names(figures) {
        let rows: Vec<_> = figures
            .iter()
            .filter(|f| (&f.profile, &f.figure) == (&name.0, &name.1))
            .collect();
        let longest = rows.iter().map(|f| f.p90).fold(f64::MIN_POSITIVE, f64::max);
        y += 2 * BAR;
        let _ = writeln!(
            body,
            r#"<text x="8" y="{}" font-weight="bold">{}: {}</text>"#,
            y - 8,
            name.0,
            name.1
        );
        for row in rows {
            let (bar, line) = (row.median / longest * WIDTH, row.p90 / longest * WIDTH);
            let colour = if row.subject == "husk" { "#1f6feb" } else { "#8b949e" };
            let (middle, text) = (y + BAR / 2, y + BAR / 2 + 4);
            let _ = writeln!(body, r#"<text x="8" y="{text}">{}</text>"#, row.subject);
            let _ = writeln!(
                body,
                r#"<rect x="140" y="{}" width="{bar:.1}" height="{}" fill="{colour}"/>"#,
                y + 3,
                BAR - 6
            );
            let _ = writeln!(
                body,
                r##"<line x1="140" x2="{:.1}" y1="{middle}" y2="{middle}" stroke="#24292f"/>"##,
                140.0 + line
            );
            let _ = writeln!(
                body,
                r#"<text x="{:.1}" y="{text}">{:.2} {}</text>"#,
                148.0 + line,
                row.median,
                row.unit
            );
            y += BAR;
        }
    }
    let head = r#"<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12""#;
    format!(
        "{head} width=\"680\" height=\"{}\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n",
        y + BAR
    )
}

/// Each (profile, figure) once, in the order of first appearance.
fn names(figures: &[Figure]) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for figure in figures {
        let name = (figure.profile.clone(), figure.figure.clone());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(subject: &str, samples: Vec<f64>) -> Figure {
        Figure::new("startup", "exit_ms", "ms", subject, samples).unwrap()
    }

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let figure = figure("husk", (1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (figure.median, figure.p90, figure.p99, figure.n),
            (50.0, 90.0, 99.0, 100)
        );
        assert_eq!(self::figure("husk", vec![7.0]).p99, 7.0);
        assert!(Figure::new("startup", "exit_ms", "ms", "husk", vec![]).is_none());
    }

    #[test]
    fn the_table_compares_with_husk() {
        let table = markdown(&[figure("husk", vec![3.0]), figure("floor", vec![2.0])]);
        assert!(table.contains("| floor | 1 | 2.00 | 2.00 | 2.00 | 1.50 |"), "{table}");
    }

    #[test]
    fn the_chart_has_a_bar_for_each_subject() {
        let chart = svg(&[figure("husk", vec![3.0]), figure("floor", vec![2.0])]);
        assert_eq!(chart.matches("<rect x=").count(), 2);
        assert!(chart.ends_with("</svg>\n"));
    }
}
