package model

// Media types, annotations and limits of the images that Shoal writes.
const (
	// MediaTypeMembers is the member table: a JSON list of Layer.
	MediaTypeMembers = "application/vnd.shoal.members.v1+json"
	// MediaTypeHashLayer is a HashLayer in its wire form.
	MediaTypeHashLayer = "application/vnd.shoal.hashlayer.v1"
	// ArtifactTypePieces is the referrer manifest that keeps the member table and the hash layers
	// reachable from the index, so that copies and garbage collection know about them.
	ArtifactTypePieces = "application/vnd.shoal.pieces.v1"

	// AnnotationFormat is on index and manifest; its value is Format.
	AnnotationFormat = "dev.shoal.format"
	// Format is the only format there is.
	Format = "1"
	// AnnotationMembers is the digest of the member table's blob, on index and manifest.
	AnnotationMembers = "dev.shoal.members"
	// AnnotationMembersSize is that blob's size in bytes, in decimal.
	AnnotationMembersSize = "dev.shoal.members-size"
	// AnnotationRoot is a layer's BEP 52 pieces root in hexadecimal.
	AnnotationRoot = "dev.shoal.pieces-root"
	// AnnotationFilePath and AnnotationFileMetadata describe the file of a one-file layer (CNCF
	// ModelPack spec, annotations).
	AnnotationFilePath     = "org.cncf.model.filepath"
	AnnotationFileMetadata = "org.cncf.model.file.metadata+json"

	// ModelPackSuffix is appended to the tag for the ModelPack manifest over the same layers.
	ModelPackSuffix = "-modelpack"

	mediaTypeModelPackManifest = "application/vnd.cncf.model.manifest.v1+json"
	mediaTypeModelPackConfig   = "application/vnd.cncf.model.config.v1+json"
)

const (
	// MaxLayers is what an image may have: overlayfs mounts fail near 500 lower directories.
	MaxLayers = 256
	// MaxManifest is what registries accept of a manifest or index, in bytes; image configs have
	// the same limit.
	MaxManifest = 4 << 20
	// MaxTable bounds the member table, in bytes.
	MaxTable = 64 << 20
)
