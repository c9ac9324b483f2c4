package foreign

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/shoal-project/shoal/model"
)

// Options bound what Unpack does. Zero values mean the defaults.
type Options struct {
	// MaxBytes is how many bytes may be written, a defence against compression bombs. 0 means 1 TiB.
	MaxBytes int64
	// MaxEntries is how many members all tars together may have. 0 means a million.
	MaxEntries int
	// Link returns a file that has a raw layer's bytes and may be linked into the tree; "" where the
	// bytes have to be copied. Nil means to copy all.
	Link func(Layer) string
}

// maxDepth is how deep a path may lie: the kernel's limit on paths is met before, with long names.
const maxDepth = 128

// Unpack fills dir, an empty folder, with the image's tree: files 0444 or 0555, folders 0555,
// everything owned by the caller. Of a plain image later layers replace and remove (OCI image-spec,
// "Whiteouts") what earlier ones brought; of an artifact no path may come twice. Devices, pipes and
// sockets are left out. open gives a layer's bytes.
//
// The error is ctx's, open's, or a *LayerError; dir is to be thrown away then.
func Unpack(ctx context.Context, dir string, image *Image, open func(Layer) (io.ReadCloser, error), opts Options) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = 1 << 40
	}
	if opts.MaxEntries <= 0 {
		opts.MaxEntries = 1_000_000
	}
	u := &unpacker{root: root, image: image, opts: opts, buf: make([]byte, 1<<20), dirs: map[string]bool{}}
	for _, l := range image.Layers {
		if err := u.layer(ctx, l, open); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &LayerError{l.Digest, err}
		}
	}
	return u.lock()
}

type unpacker struct {
	root    *os.Root
	image   *Image
	opts    Options
	buf     []byte
	written int64
	entries int
	dirs    map[string]bool // made so far: they become read-only at the end
	fresh   map[string]bool // of this layer: opaque whiteouts spare them
}

func (u *unpacker) layer(ctx context.Context, l Layer, open func(Layer) (io.ReadCloser, error)) error {
	if l.Encoding == Raw {
		return u.raw(ctx, l, open)
	}
	body, err := open(l)
	if err != nil {
		return err
	}
	defer body.Close()
	plain, closer, err := decompress(&contextReader{ctx, body}, l.Encoding)
	if err != nil {
		return err
	}
	defer closer()
	u.fresh = map[string]bool{}
	members := tar.NewReader(plain)
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar: %w", err)
		}
		if u.entries++; u.entries > u.opts.MaxEntries {
			return fmt.Errorf("tar: more than %d members", u.opts.MaxEntries)
		}
		if err := u.member(h, members); err != nil {
			return fmt.Errorf("member %.200q: %w", h.Name, err)
		}
	}
}

// decompress returns the tar's bytes.
func decompress(r io.Reader, e Encoding) (io.Reader, func(), error) {
	switch e {
	case TarGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		return z, func() {}, nil
	case TarZstd:
		// One goroutine, and no window that a header may ask for at will.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// raw puts the layer itself into the tree.
func (u *unpacker) raw(ctx context.Context, l Layer, open func(Layer) (io.ReadCloser, error)) error {
	name, err := u.name(l.Path)
	if err != nil {
		return err
	}
	if err := u.parents(name); err != nil {
		return err
	}
	if u.opts.Link != nil {
		if from := u.opts.Link(l); from != "" {
			// The folders above were made by us, so that no link leads out of the tree.
			return os.Link(from, u.root.Name()+"/"+name)
		}
	}
	body, err := open(l)
	if err != nil {
		return err
	}
	defer body.Close()
	return u.write(name, 0o444, l.Size, &contextReader{ctx, body})
}

// name returns a member's path in the tree, "." for the root.
func (u *unpacker) name(raw string) (string, error) {
	if strings.ContainsRune(raw, 0) {
		return "", errors.New("its name has a NUL byte")
	}
	if u.image.Kind != Plain && path.IsAbs(raw) {
		return "", errors.New("its path is absolute")
	}
	name := path.Clean(strings.TrimLeft(raw, "/")) // an image's paths may begin at its root
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", errors.New("its path leads out of the tree")
	}
	if strings.Count(name, "/") >= maxDepth {
		return "", fmt.Errorf("its path is more than %d folders deep", maxDepth)
	}
	if u.image.Kind != Plain && name != "." {
		if err := model.CheckPaths([]string{name}); err != nil {
			return "", err
		}
	}
	return name, nil
}

// member unpacks one member of a tar.
func (u *unpacker) member(h *tar.Header, body io.Reader) error {
	name, err := u.name(h.Name)
	if err != nil {
		return err
	}
	if base := path.Base(name); u.image.Kind == Plain && strings.HasPrefix(base, whiteout) {
		return u.remove(name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if name == "." {
			return nil
		}
		return u.folder(name)
	case tar.TypeReg:
	case tar.TypeLink, tar.TypeSymlink:
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return nil // devices, pipes: a model has none, and an image that has them is mounted, not copied
	}
	if name == "." {
		return errors.New("is the tree itself")
	}
	if err := u.parents(name); err != nil {
		return err
	}
	if err := u.replace(name); err != nil {
		return err
	}
	u.fresh[name] = true
	switch h.Typeflag {
	case tar.TypeLink:
		return u.link(name, h.Linkname)
	case tar.TypeSymlink:
		return u.symlink(name, h.Linkname)
	}
	mode := fs.FileMode(0o444)
	if h.FileInfo().Mode()&0o111 != 0 {
		mode = 0o555
	}
	return u.write(name, mode, h.Size, body)
}

// folder makes a folder of the tree, and takes the place of anything else in a plain image.
func (u *unpacker) folder(name string) error {
	if err := u.parents(name); err != nil {
		return err
	}
	if info, err := u.root.Lstat(name); err == nil && !info.IsDir() {
		if err := u.replace(name); err != nil {
			return err
		}
	}
	u.fresh[name] = true
	return u.mkdir(name)
}

func (u *unpacker) mkdir(name string) error {
	u.dirs[name] = true
	err := u.root.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// parents makes the folders above name. A link among them is an error: writing through it is the
// classic way out of a tree, and os.Root would only keep it inside.
func (u *unpacker) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || u.dirs[dir] {
		return nil
	}
	at := ""
	for part := range strings.SplitSeq(dir, "/") {
		at = path.Join(at, part)
		info, err := u.root.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := u.mkdir(at); err != nil {
				return err
			}
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%q above it is no folder", at)
		}
	}
	return nil
}

// replace makes room for a member.
func (u *unpacker) replace(name string) error {
	info, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if u.image.Kind != Plain {
		return errors.New("is there already")
	}
	u.forget(name, info)
	return u.root.RemoveAll(name)
}

func (u *unpacker) forget(name string, info fs.FileInfo) {
	if !info.IsDir() {
		return
	}
	for dir := range u.dirs {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			delete(u.dirs, dir)
		}
	}
}

// Whiteouts (OCI image-spec, layer.md).
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// remove applies a whiteout.
func (u *unpacker) remove(name string) error {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if base != opaque {
		victim := path.Join(dir, strings.TrimPrefix(base, whiteout))
		if victim == dir || path.Dir(victim) != dir {
			return errors.New("removes no proper name")
		}
		return u.removeOne(victim)
	}
	d, err := u.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if victim := path.Join(dir, n); !u.fresh[victim] {
			if err := u.removeOne(victim); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *unpacker) removeOne(name string) error {
	// Not through a link: that what is removed lies where its name says.
	if err := u.parents(name); err != nil {
		return err
	}
	info, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	u.forget(name, info)
	return u.root.RemoveAll(name)
}

// link makes a hard link to another file of the tree.
func (u *unpacker) link(name, to string) error {
	from, err := u.name(to)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", to, err)
	}
	info, err := u.root.Lstat(from)
	if err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("is a link to %.200q, which is no file of the tree", to)
	}
	if err := u.parents(from); err != nil {
		return err
	}
	return u.root.Link(from, name)
}

// symlink makes a link that leads into the tree from wherever the tree is mounted: absolute targets
// of a plain image are those of its own root, and become relative.
func (u *unpacker) symlink(name, to string) error {
	if to == "" || strings.ContainsRune(to, 0) {
		return errors.New("is a link to nothing")
	}
	dir := path.Dir(name)
	if path.IsAbs(to) {
		if u.image.Kind != Plain {
			return fmt.Errorf("is a link to %.200q, out of the tree", to)
		}
		to = strings.Repeat("../", depth(dir)) + strings.TrimLeft(path.Clean(to), "/")
		if to == "" {
			to = "."
		}
	}
	// Cleaned, so that ".." is only at its beginning, where it leaves folders that we made: behind
	// another link it could lead anywhere.
	to = path.Clean(to)
	if end := path.Join(dir, to); end == ".." || strings.HasPrefix(end, "../") {
		return fmt.Errorf("is a link to %.200q, out of the tree", to)
	}
	return u.root.Symlink(to, name)
}

func depth(dir string) int {
	if dir == "." {
		return 0
	}
	return strings.Count(dir, "/") + 1
}

// write makes a file of exactly size bytes.
func (u *unpacker) write(name string, mode fs.FileMode, size int64, from io.Reader) error {
	if size < 0 || size > u.opts.MaxBytes-u.written {
		return fmt.Errorf("has %d bytes; the tree may have %d in all, and %d are written", size, u.opts.MaxBytes, u.written)
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{io.LimitReader(from, size)}, u.buf)
	u.written += n
	if err == nil && n < size {
		err = fmt.Errorf("ends after %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// lock makes the folders read-only.
func (u *unpacker) lock() error {
	for dir := range u.dirs {
		if err := u.root.Chmod(dir, 0o555); err != nil {
			return err
		}
	}
	return nil
}

// contextReader stops when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
