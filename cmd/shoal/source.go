package main

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
	"github.com/shoal-project/shoal/model/source/oss"
)

// sourceFlags say where a model's files come from, beside the name of the place.
type sourceFlags struct {
	endpoint, region string
	insecure         bool
	files            source.Globs
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.endpoint, "oss-endpoint", "", "OSS endpoint, https unless it begins with http:// (default: the region's public one)")
	flags.StringVar(&f.region, "oss-region", "", "region of the OSS bucket, such as cn-hangzhou (default: the endpoint's)")
	flags.BoolVar(&f.insecure, "oss-insecure", false, "allow an OSS endpoint of http://")
	flags.StringSliceVar(&f.files.Include, "include", nil, "with oss://: globs of the only files to take (\"*.safetensors\", \"original/**\")")
	flags.StringSliceVar(&f.files.Exclude, "exclude", nil, "with oss://: globs of files to leave out")
}

// open returns the source that name stands for, a directory or oss://bucket/path. state keeps the
// checksums of a directory's files. done lets go of the source.
func (f *sourceFlags) open(name, state string, log *slog.Logger) (src model.Source, done func(), err error) {
	if !strings.HasPrefix(name, "oss://") {
		if len(f.files.Include)+len(f.files.Exclude) > 0 {
			return nil, nil, errors.New("--include and --exclude choose among the objects of oss://; a directory is packed as a whole")
		}
		dir, err := source.NewDir(name, filepath.Join(state, "checksums"), log)
		return dir, func() {}, err
	}
	bucket, path, err := oss.ParseURL(name)
	if err != nil {
		return nil, nil, err
	}
	objects, err := oss.New(oss.Config{
		Endpoint: f.endpoint, Region: f.region, Insecure: f.insecure,
		Bucket: bucket, Path: path, Files: f.files,
		Credentials: oss.FromEnv, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return objects, objects.Close, nil
}
