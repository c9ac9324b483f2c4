// Package model turns a model's files into an OCI image and back.
//
// Format 1 is permanent: the same files give the same layer digests in any version of Shoal, in any
// repository and region. A layer is an uncompressed tar whose members' bytes begin at multiples of
// 4096; its header and padding bytes (the skeleton) follow from the members' paths and sizes alone,
// so a node stores only the files and writes the skeleton again when somebody asks for the tar.
// Every layer also has a BEP 52 pieces root, so that a swarm can verify it piece by piece.
//
// [Pack] streams a [Source] to a registry, [Copy] brings an image from there to others, [Resolve] reads
// an image's description, [Pull] restores its files. Commands and the controller call Pack, Copy and
// Pull; mirror, swarm and peer use Resolve, the layers and their hashes. Everything that comes out of a registry is checked before it is believed.
package model
