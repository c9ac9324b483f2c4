// Package mirror is a region's registry mirror: it reads each byte of a blob from the upstream
// registry once, however many nodes ask for it, and serves it while it arrives.
//
// A request names its upstream by containerd's ns parameter, among the configured ones only. The
// first request for a blob starts its fill, a few parallel ranges ahead of a frontier; every other
// request joins it and gets the bytes as they come, ranges too. A range far ahead of the frontier is
// fetched next. A client that hangs up harms no fill, and a fill goes on when nobody waits for it. It
// survives the process: what was written and synced is not read again.
//
// It promises that a blob is committed only after its sha256 matched, and that a body which looks
// complete is right: the last byte of a whole body is held back until then, and the connection is
// broken off where the digest is wrong. A part of a blob (206) is sent before the whole is known to be
// right; nodes check it against the hashes that the manifest names.
//
// The service (Mirror.Blob, Mirror.Manifest) does not know HTTP; Mirror.Handler puts the read side of
// the OCI distribution API over it. cmd calls it; the blobs lie in peer/store.
package mirror
