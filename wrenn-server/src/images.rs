//! `wrenn-server images`: the images of a data directory.
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::Path;
use std::time::SystemTime;

use clap::Subcommand;
use wrenn_core::Host;
use wrenn_core::image::{Image, ImageBuilder, Step};

#[derive(Subcommand)]
pub(crate) enum Images {
    /// List the images: name, size, age of the base and of the kernel in days, and what it was made of.
    Ls,
    /// Pull an OCI image, so that sandboxes can be made from it: `python:3.12`, `ghcr.io/acme/tool@sha256:…`, or of this
    /// machine `oci:DIRECTORY`, `oci-archive:FILE`, `docker-archive:FILE`, `tar:FILE` or `dir:DIRECTORY`. Does nothing where it
    /// is here already.
    Pull {
        /// The reference.
        reference: String,
        /// What the image is to be called. Default: what people call it, `python-3.12` for `python:3.12`.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Ask whether there is a newer one, and for a newer kernel, where it is here already.
        #[arg(long)]
        refresh: bool,
        /// Ask this registry without TLS, HOST:PORT. Those of this machine are anyway. May be given more than once.
        #[arg(long, value_name = "HOST")]
        plain_http: Vec<String>,
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
    /// Remove what no image, snapshot or sandbox needs: images that were replaced, and layers.
    Prune,
    /// Read every file of an image, or of all, and compare it with what was built. Fails where one differs.
    Verify {
        /// The image's name.
        name: Option<String>,
    },
}

pub(crate) async fn run(command: Images, data_dir: &Path) -> anyhow::Result<()> {
    match command {
        Images::Ls => list(data_dir),
        Images::Pull { reference, name, refresh, plain_http, mirror } => {
            let named = name.map(|name| Image::builder(name).oci(&reference));
            let mut builder = named.unwrap_or_else(|| Image::from_oci(&reference));
            if refresh {
                builder = builder.refresh();
            }
            builder = plain_http.into_iter().fold(builder, ImageBuilder::registry_plain_http);
            builder = mirror.into_iter().fold(builder, |builder, (of, mirror)| builder.registry_mirror(of, mirror));
            let image = builder.build(data_dir, |step: &Step| println!("{step}")).await?;
            println!("{} is ready: {}", image.name(), image.reference_digest().unwrap_or_default());
            Ok(())
        }
        Images::Sbom { name } => {
            println!("{}", Image::open(data_dir, &name)?.spdx());
            Ok(())
        }
        Images::Rm { name } => Ok(host(data_dir).await?.remove_image(&name).await?),
        Images::Prune => {
            let pruned = host(data_dir).await?.prune_images().await?;
            pruned.images.iter().chain(&pruned.layers).for_each(|name| println!("{name}"));
            println!("{} images and {} layers are gone", pruned.images.len(), pruned.layers.len());
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
    since.elapsed().map_or(0, |age| age.as_secs() / 86_400)
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
