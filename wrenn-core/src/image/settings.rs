//! The settings of an image to build.

use std::path::PathBuf;

use crate::image::error::ImageError;
use crate::image::initramfs::Init;
use crate::image::kernel::Freshness;
use crate::image::manifest::{BASE_EROFS, BASE_EXT4};
use crate::image::oci_settings::{OciSettings, former_name_of, is_reference, name_of};
use crate::image::rootfs::Recipe;
use crate::oci::Credentials;

/// The settings of an image to build, made by [`Image::builder`](crate::image::Image::builder).
///
/// ```no_run
/// # async fn demo() -> Result<(), wrenn_core::image::ImageError> {
/// use wrenn_core::image::Image;
///
/// let builder = Image::builder("python").package("python3-numpy");
/// let image = builder.build(&wrenn_core::default_data_dir(), |step| println!("{step}")).await?;
/// println!("{} has the kernel {}", image.name(), image.kernel_release());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct ImageBuilder {
    pub(super) name: String,
    /// What an earlier wrenn called an image of that reference, where nobody else has named it.
    pub(super) former_name: Option<String>,
    pub(super) agent: Option<PathBuf>,
    /// The Debian release that the kernel comes from, and a base that is Debian's.
    pub(super) suite: String,
    pub(super) packages: Vec<String>,
    /// What the base is, where it is not Debian's.
    pub(super) oci: Option<OciSettings>,
    pub(super) drive_size_bytes: u64,
    pub(super) freshness: Freshness,
}

impl ImageBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            former_name: None,
            agent: None,
            suite: "bookworm".to_owned(),
            packages: Vec::new(),
            oci: None,
            drive_size_bytes: DRIVE_SIZE_BYTES,
            freshness: Freshness::Kept,
        }
    }

    /// Of a reference that nobody has named.
    pub(super) fn of_reference(reference: String) -> Self {
        let former_name = Some(former_name_of(&reference));
        Self { former_name, ..Self::new(name_of(&reference)).oci(reference) }
    }

    /// The name of the image. One that an earlier wrenn has made of the same reference, and called otherwise, keeps that
    /// name: [`Image::name`](crate::image::Image::name) has it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the image of a reference as its base, as [`Image::from_oci`](crate::image::Image::from_oci) does, under the
    /// builder's name.
    pub fn oci(mut self, reference: impl Into<String>) -> Self {
        self.oci = Some(OciSettings::new(reference.into()));
        self
    }

    /// Logs in at the registry of the reference that was named before. Default: what the file of Docker's client says
    /// (`~/.docker/config.json` or `DOCKER_CONFIG`), with its credential helpers. No password is written down.
    pub fn registry_login(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        if let Some(oci) = &mut self.oci {
            oci.log_in(user.into(), password.into());
        }
        self
    }

    /// Asks registries as nobody, whatever the file of Docker's client says: for a reference that comes from somebody else.
    pub fn registry_anonymous(mut self) -> Self {
        if let Some(oci) = &mut self.oci {
            oci.pull.credentials = Some(Credentials::Anonymous);
        }
        self
    }

    /// Asks `mirror` before `registry`, for one `mirror.example:5000` before `docker.io`. May be called more than once.
    pub fn registry_mirror(mut self, registry: impl Into<String>, mirror: impl Into<String>) -> Self {
        if let Some(oci) = &mut self.oci {
            let (registry, mirror) = (registry.into(), mirror.into());
            match oci.pull.mirrors.iter_mut().find(|(known, _)| *known == registry) {
                Some((_, mirrors)) => mirrors.push(mirror),
                None => oci.pull.mirrors.push((registry, vec![mirror])),
            }
        }
        self
    }

    /// Asks a registry without TLS, by its host and port. Default: only those of this machine are for which there is no authority,
    /// neither by [`registry_authority`](Self::registry_authority) nor in a directory `certs.d` of Docker's or Podman's.
    pub fn registry_plain_http(mut self, registry: impl Into<String>) -> Self {
        if let Some(oci) = &mut self.oci {
            oci.pull.plain_http.push(registry.into());
        }
        self
    }

    /// Trusts authorities, in PEM, when it asks registries: besides the host's own, which the variable `SSL_CERT_FILE` may name,
    /// and those that `certs.d` has for the registry.
    pub fn registry_authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
        if let Some(oci) = &mut self.oci {
            oci.pull.authorities.push(pem.into());
        }
        self
    }

    /// The path of another agent's binary, which is static and for x86-64. Default: the agent that comes with this
    /// library. An image with another agent keeps it; one with the library's gets each newer one.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = Some(path.into());
        self
    }

    /// The size of each sandbox's writable drive, in bytes: a multiple of 4096 from 16 MiB to 8 TiB. Default: 4 GiB.
    /// The drive is sparse, and costs what is written to it.
    pub fn drive_size_bytes(mut self, size_bytes: u64) -> Self {
        self.drive_size_bytes = size_bytes;
        self
    }

    /// The code name of the Debian release that the kernel comes from, and the base unless that is an OCI image. Default:
    /// `bookworm`. Another release costs a new kernel, and a new base.
    pub fn suite(mut self, suite: impl Into<String>) -> Self {
        self.suite = suite.into();
        self
    }

    /// Adds a Debian package to the base. Default: none besides wrenn's own. Each package makes the base larger, and a
    /// change of the packages costs a new base. An OCI image takes none.
    pub fn package(mut self, package: impl Into<String>) -> Self {
        self.packages.push(package.into());
        self
    }

    /// Has the build ask for what is newer, where an image is there already: packages, a kernel, what a tag of a registry's
    /// leads to. Default: an image with the same settings stays as it is, however old it is, and nobody is asked. Sandboxes
    /// that were created from an image go on with its base.
    pub fn refresh(mut self) -> Self {
        self.freshness = Freshness::Newest;
        self
    }

    /// The Debian release whose kernel the guests boot.
    pub(super) fn kernel_suite(&self) -> &str {
        &self.suite
    }

    /// What a base of Debian's is made of.
    pub(super) fn recipe(&self) -> Recipe {
        Recipe { suite: self.suite.clone(), extra_packages: self.packages.clone() }
    }

    /// Changes with anything that goes into the base, but for what Debian and registries change.
    pub(super) fn base_digest(&self) -> Result<String, ImageError> {
        self.oci.as_ref().map_or_else(|| Ok(self.recipe().digest()), OciSettings::digest)
    }

    /// The file name of the base.
    pub(super) fn base_file(&self) -> &'static str {
        if self.oci.is_some() { BASE_EROFS } else { BASE_EXT4 }
    }

    /// The agent to pack. Blocks.
    pub(super) fn init(&self) -> Result<Init, ImageError> {
        self.agent.as_deref().map_or_else(Init::bundled, Init::read)
    }

    /// Checks the settings, since they become arguments of programs.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        let word = |text: &str, more: &[u8]| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            text.bytes().next().is_some_and(plain) && text.bytes().all(|byte| plain(byte) || more.contains(&byte))
        };
        if !word(&self.suite, b"-") {
            return Err(ImageError::setting("suite", &self.suite, "a code name, like `bookworm`"));
        }
        for package in &self.packages {
            if !word(package, b"+.-") {
                return Err(ImageError::setting("package", package, "a Debian package's name"));
            }
        }
        if let Some(oci) = &self.oci {
            oci.check()?;
            if let Some(package) = self.packages.first() {
                return Err(ImageError::setting(
                    "package",
                    package,
                    "of a base of Debian's: install it in a step of a template",
                ));
            }
        }
        let size = self.drive_size_bytes;
        if !DRIVE_SIZES_BYTES.contains(&size) || !size.is_multiple_of(4096) {
            return Err(ImageError::setting(
                "drive_size_bytes",
                &size.to_string(),
                "a multiple of 4096 from 16 MiB to 8 TiB",
            ));
        }
        Ok(())
    }
}

/// The settings of the image of a reference, which has a `:`, `/` or `@`, or else of Debian's packages under this name. Both have
/// the default of every other setting.
impl From<&str> for ImageBuilder {
    fn from(text: &str) -> Self {
        if is_reference(text) { Self::of_reference(text.to_owned()) } else { Self::new(text.to_owned()) }
    }
}

impl From<String> for ImageBuilder {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

const DRIVE_SIZE_BYTES: u64 = 4 << 30;
const DRIVE_SIZES_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=8 << 40;
