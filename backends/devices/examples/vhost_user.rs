//! Serves virtio-fs and vsock as `stockade vhost-user` does; takes the same arguments.

fn main() -> std::process::ExitCode {
    stockade_devices::vhost_user::main(std::env::args().skip(1))
}
