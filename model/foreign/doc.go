// Package foreign describes images and artifacts that Shoal did not pack, and unpacks them: plain
// images of docker and buildkit, ModelPack artifacts (modctl), KitOps kits and those of Docker Model
// Runner. They have no pieces root, so that their bytes are checked by the sha256 of each whole blob.
//
// The node agent calls it for models that model.Resolve does not know. Nothing in an image is
// trusted: no name leaves the folder that is filled, and what a tar may claim is bounded.
package foreign
