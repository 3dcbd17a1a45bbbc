//! The charts as SVG. No I/O.
//!
//! `plotters` writes a colour as an attribute of each element. The page's style sheet selects the elements by these
//! attributes and gives them the colours of its theme, which are stronger than attributes (SVG 2, 6.5); so a chart needs
//! no change for dark ground. Text is measured by an estimate and set by the browser in the font of the page.

use std::{io, ops::Range};

use pingfleet_store::{RttBin, TargetRtt, TimeBin};
use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::{
        Shift,
        cartesian::Cartesian2d,
        ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    },
    drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _},
    element::{PathElement, Rectangle, Text},
    prelude::{DashedLineSeries, LineSeries, SVGBackend},
    series::AreaSeries,
    style::{
        Color as _, IntoFont as _, RGBColor, TRANSPARENT, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::words::{grouped, millis, three_digits};

/// The drawing failed; on a string it cannot.
pub(crate) type ChartError = DrawingAreaErrorKind<io::Error>;

/// Width and height in pixels, of a chart beside another one and of one that has a row of its own.
const HALF: (u32, u32) = (620, 200);
const WHOLE: (u32, u32) = (1240, 200);
const AXIS_HEIGHT: u32 = 24;
const AXIS_WIDTH: u32 = 52;

/// The most that a letter of a label is wide, and the space beside one, in units of the drawing.
const LETTER_WIDTH: u32 = 8;
const LABEL_MARGIN: u32 = 12;
const RIGHT_MARGIN: u32 = 18;
const TEXT: u32 = 15;

/// The roles of the colours; the style sheet has the same values.
const ACCENT: RGBColor = RGBColor(0x1F, 0x5F, 0xBF);
const NOT_UP: RGBColor = RGBColor(0xC2, 0x32, 0x1A);
const TICK: RGBColor = RGBColor(0x5D, 0x6B, 0x7A);
const GRID: RGBColor = RGBColor(0xDF, 0xE4, 0xEA);
const INK: RGBColor = RGBColor(0x16, 0x20, 0x2B);

/// Vertical lines between labels that are close to one another.
const MARK_ROWS: u32 = 14;

type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// An axis with the values at which it has labels and grid lines.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
    label: fn(f64) -> String,
}

impl Axis {
    /// From 0 to the last of some round values.
    fn up_to(ticks: Vec<f64>, label: fn(f64) -> String) -> Self {
        let top = ticks.last().copied().unwrap_or(1.0);
        Self {
            range: 0.0..top,
            ticks,
            label,
        }
    }

    /// Logarithms of milliseconds, as far as the bins go.
    fn milliseconds(range: Range<f64>) -> Self {
        Self {
            ticks: decades(&range),
            range,
            label: milliseconds,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let length = (self.range.end - self.range.start).max(f64::EPSILON);
        let share = (value - self.range.start) / length;
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// Draws two axes, and horizontal lines. `top` is the space above them.
fn axes<'a, 'b>(
    area: &'a Drawing<'b>,
    top: u32,
    x: Axis,
    y: Axis,
) -> Result<Axes<'a, 'b>, ChartError> {
    let labels = y
        .ticks
        .iter()
        .map(|value| (y.label)(*value).chars().count());
    let longest = labels.max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(area)
        .margin_top(top)
        .margin_right(RIGHT_MARGIN)
        .x_label_area_size(AXIS_HEIGHT)
        .y_label_area_size(AXIS_WIDTH.max(longest * LETTER_WIDTH + LABEL_MARGIN))
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .axis_style(GRID)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .x_label_style(style(TICK, HPos::Center))
        .y_label_style(style(TICK, HPos::Right))
        .draw()?;
    Ok(chart)
}

/// Draws with a function onto an SVG of its own.
fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Drawing<'_>) -> Result<(), ChartError>,
) -> Result<String, ChartError> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    draw(&area)?;
    area.present()?;
    drop(area);
    Ok(text)
}

fn style(colour: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", TEXT).into_font();
    font.color(&colour).pos(Pos::new(horizontal, VPos::Center))
}

/// About four values from 0 on that are round, of which the last is at least `most`.
fn steps(most: f64) -> Vec<f64> {
    let rough = most.max(1.0) / 4.0;
    let unit = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * unit)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough)
        .max(1.0);
    let count = (most / step).ceil().max(1.0) as u32;
    (0..=count).map(|at| f64::from(at) * step).collect()
}

/// Values 1, 2 and 5 times a power of ten in a range of milliseconds, as logarithms; only powers of ten when they are many.
fn decades(range: &Range<f64>) -> Vec<f64> {
    let all = (-4..=6).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
    let inside: Vec<f64> = all
        .map(f64::log10)
        .filter(|value| (range.start - 0.001..=range.end + 0.001).contains(value))
        .collect();
    if inside.len() <= 10 {
        return inside;
    }
    let powers = inside.into_iter();
    powers
        .filter(|value| (value - value.round()).abs() < 0.001)
        .collect()
}

/// The edges of a bin as logarithms of milliseconds. The first bin begins at 0, of which there is none.
fn edges(bin: &RttBin) -> (f64, f64) {
    let log = |nanos: i64| (nanos as f64 / 1_000_000.0).log10();
    let to = log(bin.to_ns);
    if bin.from_ns > 0 {
        (log(bin.from_ns), to)
    } else {
        (to - 0.1, to)
    }
}

fn whole(value: f64) -> String {
    grouped(value.round() as i64)
}

/// Milliseconds of which this is the logarithm, without zeros behind the point.
fn milliseconds(log: f64) -> String {
    let value = 10_f64.powf(log);
    if value >= 1.0 {
        whole(value)
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').to_owned()
    }
}

/// Targets by their mean round-trip time, with lines at the percentiles.
pub(crate) fn histogram(bins: &[RttBin], rtt: &TargetRtt) -> Result<String, ChartError> {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else {
        return Ok(String::new());
    };
    let (from, to) = (edges(first).0, edges(last).1);
    let most = bins.iter().map(|bin| bin.targets).max().unwrap_or(0);
    let y_ticks = steps(most as f64);
    let top = y_ticks.last().copied().unwrap_or(1.0);
    svg(HALF, |area| {
        let mut chart = axes(
            area,
            3 * MARK_ROWS + 4,
            Axis::milliseconds(from..to),
            Axis::up_to(y_ticks, whole),
        )?;
        // A bar of few targets is visible all the same.
        let least = top / 100.0;
        let bars = bins.iter().filter(|bin| bin.targets > 0).map(|bin| {
            let (from, to) = edges(bin);
            let height = (bin.targets as f64).max(least);
            let mut bar = Rectangle::new([(from, 0.0), (to, height)], ACCENT.filled());
            bar.set_margin(0, 0, 1, 1);
            bar
        });
        chart.draw_series(bars)?;
        let marks = [
            ("50 %", rtt.p50_ns),
            ("95 %", rtt.p95_ns),
            ("99 %", rtt.p99_ns),
        ];
        for (row, (name, nanos)) in marks.into_iter().enumerate() {
            let at = (nanos as f64 / 1_000_000.0)
                .max(0.000_001)
                .log10()
                .clamp(from, to);
            let line = [(at, 0.0), (at, top)];
            chart.draw_series(DashedLineSeries::new(line, 4, 3, INK.into()))?;
            let (x, y) = chart.backend_coord(&(at, top));
            let is_right = at > from + 0.75 * (to - from);
            let (anchor, shift) = if is_right {
                (HPos::Right, -3)
            } else {
                (HPos::Left, 3)
            };
            // A row of its own for each, and a line up to it.
            let y_text = y - (MARK_ROWS as i32 * (3 - row as i32)) + 4;
            area.draw(&PathElement::new([(x, y_text), (x, y)], INK))?;
            let text = format!("{name}: {} ms", millis(nanos));
            area.draw(&Text::new(text, (x + shift, y_text), style(INK, anchor)))?;
        }
        Ok(())
    })
}

/// The share of the targets that answered within a time.
pub(crate) fn cumulative(bins: &[RttBin]) -> Result<String, ChartError> {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else {
        return Ok(String::new());
    };
    let (from, to) = (edges(first).0, edges(last).1);
    let total: i64 = bins.iter().map(|bin| bin.targets).sum();
    let mut points = vec![(from, 0.0)];
    let mut sum = 0;
    for bin in bins {
        sum += bin.targets;
        points.push((edges(bin).1, 100.0 * sum as f64 / total.max(1) as f64));
    }
    let shares = Axis::up_to(vec![0.0, 25.0, 50.0, 75.0, 100.0], |share| {
        format!("{share:.0} %")
    });
    svg(HALF, |area| {
        let mut chart = axes(area, 12, Axis::milliseconds(from..to), shares)?;
        chart.draw_series(LineSeries::new(points, ACCENT.stroke_width(2)))?;
        Ok(())
    })
}

/// The unit of a span of time on an axis, and its seconds.
pub(crate) fn time_unit(seconds: f64) -> (&'static str, f64) {
    match seconds {
        ..=300.0 => ("seconds", 1.0),
        ..=14_400.0 => ("minutes", 60.0),
        ..=345_600.0 => ("hours", 3600.0),
        _ => ("days", 86_400.0),
    }
}

/// Targets a second that answered, as an area, and that did not, as a dashed line.
pub(crate) fn timeline(bins: &[TimeBin]) -> Result<String, ChartError> {
    let Some(last) = bins.last() else {
        return Ok(String::new());
    };
    let end = last.from_s + last.length_s;
    let (_, unit) = time_unit(end);
    let rate = |pick: fn(&TimeBin) -> i64| {
        bins.iter().map(move |bin| {
            let middle = bin.from_s + bin.length_s / 2.0;
            (middle / unit, pick(bin) as f64 / bin.length_s)
        })
    };
    let answered: Vec<_> = rate(|bin| bin.answered).collect();
    let not_up: Vec<_> = rate(|bin| bin.not_up).collect();
    let most = answered.iter().chain(&not_up).map(|(_, rate)| *rate);
    let y_ticks = steps(most.fold(0.0, f64::max));
    let times = Axis {
        range: 0.0..end / unit,
        ticks: steps_of_time(end / unit),
        label: short,
    };
    svg(WHOLE, |area| {
        let mut chart = axes(area, 12, times, Axis::up_to(y_ticks, whole))?;
        let filled = AreaSeries::new(answered, 0.0, ACCENT.mix(0.15));
        chart.draw_series(filled.border_style(ACCENT.stroke_width(2)))?;
        let dashed = DashedLineSeries::new(not_up, 6, 4, NOT_UP.stroke_width(2));
        chart.draw_series(dashed)?;
        Ok(())
    })
}

/// About six round values from 0 to the end.
fn steps_of_time(end: f64) -> Vec<f64> {
    let rough = end / 6.0;
    let unit = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * unit)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    (0..=10)
        .map(|at| f64::from(at) * step)
        .take_while(|value| *value <= end)
        .collect()
}

/// A round value without zeros behind the point.
fn short(value: f64) -> String {
    if value.fract() == 0.0 {
        grouped(value as i64)
    } else {
        three_digits(value).trim_end_matches('0').to_owned()
    }
}

/// Rates over time, the newest at the right: a line for each series. The first is filled.
pub(crate) fn rates(points: &[(f64, Vec<Option<f64>>)]) -> Result<String, ChartError> {
    let (Some((start, _)), Some((end, last))) = (points.first(), points.last()) else {
        return Ok(String::new());
    };
    let values = points.iter().flat_map(|(_, values)| values);
    let y_ticks = steps(values.flatten().copied().fold(0.0, f64::max));
    let length = (end - start).max(1.0);
    let times = Axis {
        range: -length..0.0,
        ticks: steps_of_time(length).into_iter().map(|at| -at).collect(),
        label: short,
    };
    svg(WHOLE, |area| {
        let mut chart = axes(area, 12, times, Axis::up_to(y_ticks, whole))?;
        for series in (0..last.len()).rev() {
            let line = points.iter().filter_map(|(at, values)| {
                let value = values.get(series).copied().flatten()?;
                Some((at - end, value))
            });
            let line: Vec<_> = line.collect();
            if series == 0 {
                let filled = AreaSeries::new(line, 0.0, ACCENT.mix(0.15));
                chart.draw_series(filled.border_style(ACCENT.stroke_width(2)))?;
            } else {
                chart.draw_series(DashedLineSeries::new(line, 6, 4, TICK.stroke_width(1)))?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(counts: &[i64]) -> Vec<RttBin> {
        let bins = counts.iter().enumerate().map(|(at, targets)| RttBin {
            from_ns: 1_000_000 * (at as i64 + 1),
            to_ns: 1_000_000 * (at as i64 + 2),
            targets: *targets,
        });
        bins.collect()
    }

    #[test]
    fn a_histogram_has_a_bar_for_each_bin_with_targets() {
        let rtt = TargetRtt {
            min_ns: 1_000_000,
            p50_ns: 1_500_000,
            p95_ns: 3_500_000,
            p99_ns: 3_900_000,
            max_ns: 3_950_000,
        };
        let drawn = histogram(&bins(&[5, 0, 700]), &rtt).unwrap();
        let bars = drawn.matches("<rect").count();
        assert_eq!(bars, 2, "{drawn}");
        for part in [
            "50 %: 1.50 ms",
            "99 %: 3.90 ms",
            "\n800\n",
            "fill=\"#1F5FBF\"",
        ] {
            assert!(drawn.contains(part), "no {part:?} in {drawn}");
        }
        assert!(histogram(&[], &rtt).unwrap().is_empty());
    }

    #[test]
    fn a_chart_has_the_colours_only_that_the_style_sheet_knows() {
        let timeline = timeline(&[TimeBin {
            from_s: 0.0,
            length_s: 1.0,
            answered: 3,
            not_up: 1,
        }])
        .unwrap();
        let sheet = include_str!("../templates/style.css");
        for drawn in [timeline, cumulative(&bins(&[1, 2, 3])).unwrap()] {
            for attribute in ["fill=\"#", "stroke=\"#"] {
                for colour in drawn.split(attribute).skip(1) {
                    let rule = format!("[{attribute}{}\"]", &colour[..6]);
                    assert!(sheet.contains(&rule), "no {rule} in the style sheet");
                }
            }
        }
    }

    #[test]
    fn the_curve_ends_with_all_targets() {
        let drawn = cumulative(&bins(&[1, 0, 3])).unwrap();
        assert!(drawn.contains("\n100 %\n"), "{drawn}");
        assert_eq!(milliseconds(-1.301_03), "0.05");
        assert_eq!(decades(&(0.0..1.0)).len(), 4);
    }

    #[test]
    fn steps_are_round_and_reach_the_largest_value() {
        assert_eq!(steps(700.0), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(steps(1.0), [0.0, 1.0]);
        assert_eq!(steps(0.0), [0.0, 1.0]);
        assert_eq!(steps_of_time(2.5), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
    }
}
