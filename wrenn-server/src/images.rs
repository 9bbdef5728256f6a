//! `wrenn-server images`: the images of a data directory.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Subcommand;
use wrenn_core::Host;
use wrenn_core::image::{Image, ImageBuilder, Step};
use wrenn_server::service::builds::is_pulled;

#[derive(Subcommand)]
pub(crate) enum Images {
    /// List the images: name, size, age of the base and of the kernel in days, and what it was made of.
    Ls,
    /// Pull an OCI image, so that sandboxes can be made from it: `python:3.12`, `ghcr.io/acme/tool@sha256:…`, or of this
    /// machine `oci:DIRECTORY`, `oci-archive:FILE`, `docker-archive:FILE`, `tar:FILE` or `dir:DIRECTORY`. Does nothing where it
    /// is here already.
    Pull {
        /// The reference; with --refresh also the name of an image that was pulled.
        reference: String,
        /// What the image is to be called. Default: what people call it, `python-3.12` for `python:3.12`.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Ask whether there is a newer one, and for a newer kernel, where it is here already.
        #[arg(long)]
        refresh: bool,
        /// Only ask, and print what a refresh of the base would bring and which templates were made on it.
        #[arg(long, requires = "refresh")]
        dry_run: bool,
        /// Ask this registry without TLS, HOST:PORT. Those of this machine are anyway, unless there is an authority for them. May be given more than once.
        #[arg(long, value_name = "HOST")]
        plain_http: Vec<String>,
        /// Trust the authorities in this file, in PEM, besides the host's own. May be given more than once.
        #[arg(long, value_name = "FILE")]
        authority: Vec<PathBuf>,
        /// Ask MIRROR before REGISTRY. May be given more than once.
        #[arg(long, value_name = "REGISTRY=MIRROR", value_parser = mirror)]
        mirror: Vec<(String, String)>,
    },
    /// Print what an image has: a list of its packages, as a JSON document of SPDX 2.3.
    Sbom {
        /// The image's name.
        name: String,
    },
    /// Remove an image. Snapshots and paused sandboxes that were made of it stay, and keep its base.
    Rm {
        /// The image's name.
        name: String,
    },
    /// Remove what no image, snapshot or sandbox needs: images that were replaced, layers, and images that were pulled for
    /// builds and not used for some days.
    Prune {
        /// After how many days without use an image that was pulled for builds goes.
        #[arg(long, default_value_t = 7, value_name = "DAYS")]
        unused_days: u32,
    },
    /// Read every file of an image, or of all, and compare it with what was built. Fails where one differs.
    Verify {
        /// The image's name.
        name: Option<String>,
    },
}

pub(crate) async fn run(command: Images, data_dir: &Path) -> anyhow::Result<()> {
    match command {
        Images::Ls => list(data_dir),
        Images::Pull { reference, name, refresh, dry_run, plain_http, authority, mirror } => {
            if dry_run && name.is_none() && is_debians(data_dir, &reference)? {
                return print_packages(&Image::open(data_dir, &reference)?).await;
            }
            let pulled = if refresh && name.is_none() { pulled(data_dir, &reference)? } else { None };
            let named = pulled.or_else(|| name.map(|name| Image::builder(name).oci(&reference)));
            let mut builder = named.unwrap_or_else(|| Image::from_oci(&reference));
            if refresh {
                builder = builder.refresh();
            }
            builder = plain_http.into_iter().fold(builder, ImageBuilder::registry_plain_http);
            for path in &authority {
                let pem = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
                builder = builder.registry_authority(pem);
            }
            builder = mirror.into_iter().fold(builder, |builder, (of, mirror)| builder.registry_mirror(of, mirror));
            if dry_run {
                return print_plan(&builder, data_dir).await;
            }
            let image = builder.build(data_dir, |step: &Step| println!("{step}")).await?;
            println!("{} is ready: {}", image.name(), image.reference_digest().unwrap_or_default());
            Ok(())
        }
        Images::Sbom { name } => {
            println!("{}", Image::open(data_dir, &name)?.spdx());
            Ok(())
        }
        Images::Rm { name } => Ok(host(data_dir).await?.remove_image(&name).await?),
        Images::Prune { unused_days } => {
            let host = host(data_dir).await?;
            let pruned = host.prune_unused_images(DAY * unused_days, |image| is_pulled(image.name())).await?;
            pruned.images.iter().chain(&pruned.layers).for_each(|name| println!("{name}"));
            let (images, layers) = (pruned.images.len(), pruned.layers.len());
            println!("{images} images and {layers} layers are gone, with {:.1} MB", pruned.bytes as f64 / 1e6);
            Ok(())
        }
        Images::Verify { name } => {
            if name.is_none() {
                for digest in Image::remove_damaged_layers(data_dir).await? {
                    println!("the layer {digest} was damaged and is gone: who needs it pulls it anew");
                }
            }
            let names = name.map_or_else(|| Image::names(data_dir), |name| Ok(vec![name]))?;
            for name in names {
                Image::open(data_dir, &name)?.verify()?;
                println!("{name} is what was built");
            }
            Ok(())
        }
    }
}

/// The settings of an image that is here, where a text is the name of one.
fn pulled(data_dir: &Path, name: &str) -> anyhow::Result<Option<ImageBuilder>> {
    if !Image::names(data_dir)?.iter().any(|image| image == name) {
        return Ok(None);
    }
    let image = Image::open(data_dir, name)?;
    let reference = image.reference().with_context(|| {
        format!(
            "{name} is made of Debian's packages: `wrenn-server setup --image {name} --refresh` makes it anew, and with \
             --dry-run this command tells which are newer"
        )
    })?;
    Ok(Some(Image::builder(name).oci(reference)))
}

/// Whether a text is the name of an image that is made of Debian's packages.
fn is_debians(data_dir: &Path, name: &str) -> anyhow::Result<bool> {
    Ok(Image::names(data_dir)?.iter().any(|image| image == name) && Image::open(data_dir, name)?.reference().is_none())
}

async fn print_packages(image: &Image) -> anyhow::Result<()> {
    let plan = image.plan_packages().await?;
    match &plan.kernel {
        Some(kernel) => println!("kernel   {}  would be {} {}", kernel.current, kernel.name, kernel.candidate),
        None => println!("the kernel is Debian's newest"),
    }
    for package in &plan.packages {
        println!("package  {}  {} would be {}", package.name, package.current, package.candidate);
    }
    Ok(())
}

async fn print_plan(builder: &ImageBuilder, data_dir: &Path) -> anyhow::Result<()> {
    let Some(plan) = builder.plan_refresh(data_dir).await? else { return Ok(()) };
    println!("here:    {}", plan.current_digest.as_deref().unwrap_or("-"));
    println!("newest:  {}", plan.newest_digest);
    if plan.current_digest.is_some() {
        print_packages(&Image::open(data_dir, &plan.image)?).await?;
    }
    if !plan.changes_base() {
        println!("the base stays as it is");
        return Ok(());
    }
    for layer in &plan.new_layers {
        println!("layer    {}  {} kB", layer.digest, layer.archive_bytes.div_ceil(1000));
    }
    for base in host(data_dir).await?.template_bases().await? {
        if base.image == plan.image {
            let state = if base.is_current { "has this base" } else { "has an earlier base" };
            println!("template {}  {state}: build it again after the refresh", base.template);
        }
    }
    Ok(())
}

fn list(data_dir: &Path) -> anyhow::Result<()> {
    for name in Image::names(data_dir)? {
        match Image::open(data_dir, &name) {
            Ok(image) => println!(
                "{name:<32}  {:>7} MB  {:>4} d  {:>4} d  {}",
                image.base().metadata()?.len() / 1_000_000,
                days(image.built_at()),
                image.kernel_fetched_at().map_or_else(|| "?".to_owned(), |at| days(at).to_string()),
                image.reference().map_or_else(|| "Debian's packages".to_owned(), str::to_owned),
            ),
            Err(error) => println!("{name:<32}  cannot be used: {error}"),
        }
    }
    Ok(())
}

fn days(since: SystemTime) -> u64 {
    since.elapsed().map_or(0, |age| age.as_secs() / DAY.as_secs())
}

async fn host(data_dir: &Path) -> wrenn_core::Result<Host> {
    Host::builder().data_dir(data_dir).open().await
}

fn mirror(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((registry, mirror)) if !registry.is_empty() && !mirror.is_empty() => {
            Ok((registry.to_owned(), mirror.to_owned()))
        }
        _ => Err("it is REGISTRY=MIRROR, such as docker.io=mirror.example:5000".to_owned()),
    }
}

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
