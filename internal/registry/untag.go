package registry

import (
	"context"
	"net/http"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// Untag takes a tag away and leaves what it named (distribution-spec, "Deleting tags"). The error unwraps to
// errdef.ErrNotFound where there is no such tag.
func (r *Repository) Untag(ctx context.Context, tag string) error {
	ctx = auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionDelete)
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, r.url("manifests/"+tag), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := r.do(req)
	if err != nil {
		return r.explain("delete the tag "+tag, err)
	}
	return resp.Body.Close()
}
