//! What a template's build costs: ten steps, the same again, and with another last step; and a create of a template whose server
//! runs, beside a plain one.

use std::time::Instant;

use wrenn_core::{Host, Ready, Sandbox, Template, TemplateBuilder};

mod support;
use support::{Goal, report, report_percentiles};

const STEPS: usize = 10;
const ROUNDS: usize = 10;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let host = Host::builder().open().await?;
    // The image's boot is not what is measured.
    Sandbox::create(&host, "base").await?.kill().await?;
    let salt = std::process::id();
    let recipe = |last: &str| -> TemplateBuilder {
        let first = (1..STEPS)
            .fold(Template::builder("base"), |recipe, step| recipe.run(format!("echo {salt} {step} >> /tmp/steps")));
        first.run(format!("echo {last} >> /tmp/steps"))
    };
    let build = async |recipe: TemplateBuilder| {
        let began = Instant::now();
        recipe.build(&host, "bench-template").await?;
        anyhow::Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let cold = build(recipe("a")).await?;
    let (mut unchanged, mut last, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        unchanged.push(build(recipe("a")).await?);
        last.push(build(recipe(&format!("b{round}"))).await?);
        references.push(cold);
    }
    report_percentiles("template_unchanged", "ms", &unchanged, &references, [Goal::AtMost(0.1), Goal::None]);
    report_percentiles("template_last_step", "ms", &last, &references, [Goal::AtMost(0.5), Goal::None]);

    let server = "python3 -m http.server 8000 --directory /srv";
    let warm = Template::builder("base").start(server).ready(Ready::http(8000, "/"));
    warm.build(&host, "bench-warm").await?;
    let (mut values, mut references) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let plain = Sandbox::create(&host, "base").await?;
        let reference = began.elapsed().as_secs_f64() * 1e3;
        let began = Instant::now();
        let sandbox = Sandbox::create(&host, "bench-warm").await?;
        drop(sandbox.connect(8000).await?);
        let value = began.elapsed().as_secs_f64() * 1e3;
        plain.kill().await?;
        sandbox.kill().await?;
        if round > 0 {
            values.push(value);
            references.push(reference);
        }
    }
    report_percentiles("template_warm", "ms", &values, &references, [Goal::AtMost(1.2), Goal::None]);
    report("template_cold", "ms", cold, cold, Goal::None);
    for name in ["bench-template", "bench-warm"] {
        host.remove_template(name).await?;
    }
    Ok(())
}
