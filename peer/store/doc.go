// Package store is the place of model bytes on a node's disk: one copy, in the final files.
//
// A blob lies in a folder of its own, named by its digest and its pieces root, because a root binds
// bytes to the manifest that named it and not to the digest: what a lying manifest brought is never
// read by another image. A layer's bytes are scattered as they arrive: each member's content goes
// into its own final file, the tar's headers and padding into a side file. A model is a tree of
// hard links to those files, made visible by one rename. Blobs of other images, and those of the
// mirror, are raw: one file.
//
//	lock                         held by the process that has the store open
//	blobs/<sha256>-<root>-<layout>/   (or <sha256>-raw/)
//	    blob.json  hashes        what the blob is
//	    state                    what of it was synced
//	    skeleton  files/<n>      its bytes (or: data)
//	    shared                   empty: data may be a link to somebody else's file
//	records/<manifest sha256>.json    which blobs a model is made of
//	models/<manifest sha256>/    the model's files
//	models/by-name/<name>        a link to the tree
//	pins.json                    who needs which model
//
// It promises that a process killed at any instruction loses nothing that the kernel has: pieces
// that were not yet written down as synced are hashed again at the next Create, and fetched again
// only when they are wrong. Nothing is trusted after a restart whose file has another time of
// modification than when it was synced.
//
// Packages peer and mirror call it; swarm uses a Blob through an interface of its own.
package store
