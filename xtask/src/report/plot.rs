//! Plots as SVG, to be put into a page. Their colours for texts and axes are the page's.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::digits;
use super::series::{Curve, Spread};

const SIZE: (u32, u32) = (820, 420);
/// The height of one line of spreads.
const LINE: u32 = 30;
/// Apart from each other, and from light and dark grounds.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x8c, 0x6b, 0xd1),
    RGBColor(0x9c, 0x75, 0x5f),
    RGBColor(0x80, 0x80, 0x80),
    RGBColor(0xb8, 0xb0, 0x20),
];

/// An image, and what its colours stand for.
pub struct Plot {
    pub caption: String,
    pub svg: String,
    /// Names with the colours of their lines, as styles write them.
    pub legend: Vec<(String, String)>,
}

/// Nanoseconds a packet over the number of flows, both on logarithmic axes.
pub fn growth(caption: &str, curves: &[Curve]) -> Result<Plot> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let costs = |from: f64, choose: fn(f64, f64) -> f64| points().map(|point| point.1).fold(from, choose);
    let (least, most) = (costs(f64::INFINITY, f64::min), costs(0.0, f64::max));
    let flows = points().map(|point| point.0).fold(1.0, f64::max);
    let coloured = || curves.iter().zip(COLOURS.iter().cycle());
    let svg = draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(40)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d((1.0..flows).log_scale(), (least * 0.8..most * 1.25).log_scale())?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("flows").y_desc("ns a packet").x_label_formatter(&|flows| digits(*flows));
        mesh.y_labels(30).y_label_formatter(&sparse).light_line_style(TRANSPARENT).draw()?;
        for (curve, colour) in coloured() {
            let points = curve.points.iter().copied();
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?;
        }
        Ok(())
    })?;
    let legend = coloured().map(|(curve, colour)| (curve.name.clone(), name(*colour))).collect();
    Ok(Plot { caption: caption.to_owned(), svg, legend })
}

/// A line for each: from the least ratio to the most, with the median marked.
pub fn ratios(caption: &str, spreads: &[Spread]) -> Result<Plot> {
    let most = spreads.iter().map(|spread| spread.most).fold(1.1, f64::max) * 1.05;
    let lines = spreads.len() as u32;
    let height = f64::from(lines);
    let svg = draw((SIZE.0, lines * LINE + 60), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(180)
            .build_cartesian_2d(0.0..most, 0.0..height)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().y_labels(0).light_line_style(TRANSPARENT);
        mesh.x_label_formatter(&|ratio| digits(*ratio)).draw()?;
        chart.draw_series([PathElement::new(vec![(1.0, 0.0), (1.0, height)], COLOURS[1].stroke_width(1))])?;
        for (place, spread) in spreads.iter().rev().enumerate() {
            let at = f64::from(place as u32) + 0.5;
            let reach = vec![(spread.least, at), (spread.most, at)];
            chart.draw_series([PathElement::new(reach, COLOURS[0].stroke_width(2))])?;
            chart.draw_series([Circle::new((spread.median, at), 5, COLOURS[0].filled())])?;
            let (_, middle) = chart.backend_coord(&(0.0, at));
            let style = ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(spread.name.clone(), (12, middle), style))?;
        }
        Ok(())
    })?;
    Ok(Plot { caption: caption.to_owned(), svg, legend: vec![] })
}

/// On a logarithmic axis there is no room for more.
fn sparse(value: &f64) -> String {
    let leading = value / 10f64.powf((value * 1.001).log10().floor());
    if [1.0, 2.0, 5.0].contains(&leading.round()) { digits(*value) } else { String::new() }
}

fn name(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

type Area<'s> = DrawingArea<SVGBackend<'s>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The image is as wide as the page lets it be.
fn draw(size: (u32, u32), paint: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    paint(&area).map_err(|error| anyhow!("cannot draw a plot: {error}"))?;
    area.present()?;
    drop(area);
    let fixed = format!("width=\"{}\" height=\"{}\" ", size.0, size.1);
    Ok(svg.replacen(&fixed, "", 1))
}
