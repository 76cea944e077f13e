//! Compiles the protocol with protox (no protoc needed) and keeps the descriptor set for reflection.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=otonix");
    let files = protox::compile(["otonix/v1/agent_link.proto"], ["."])?;
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().codec_path("crate::codec::SmallCodec").compile_fds(files)?;
    Ok(())
}
