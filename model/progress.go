package model

import "fmt"

// Progress is how far one layer is; for Copy, any blob of the image.
type Progress struct {
	// Layer counts from 0 to Layers-1.
	Layer, Layers int
	// Name is the file's path, or the first of several.
	Name string
	// Done and Size are in bytes of the layer. The layer is complete, and verified, at Done == Size.
	Done, Size int64
	// Total is the bytes of all layers together.
	Total int64
	// Reused means that the layer is in the registry already; no byte of it was read.
	Reused bool
}

// layerName names a layer for people.
func layerName(l Layer) string {
	if n := len(l.Members); n > 1 {
		return fmt.Sprintf("%s and %d more", l.Members[0].Path, n-1)
	}
	return l.Members[0].Path
}
