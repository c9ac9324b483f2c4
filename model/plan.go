package model

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Limits of the layer plan of format 1, in bytes. They double until the image has at most MaxLayers.
const (
	// ownLayer is the size from which a file is a layer of its own.
	ownLayer = 16 << 20
	// maxGroup is the most content of a layer of smaller files.
	maxGroup = 256 << 20
)

// planLayers divides a model's files into layers. A big file is a layer of its own; smaller ones
// are grouped by directory, so that an added file changes one layer and no other. Where that makes
// more than MaxLayers, both limits double and directories deeper than 3, then 2, 1, 0 components
// share a group, round by round. Layers come in the order of their first paths. The result depends
// on paths and sizes alone.
func planLayers(files []File) ([]Layer, [][]File, error) {
	if len(files) == 0 {
		return nil, nil, errors.New("the source has no files")
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = f.Path
		if f.Size < 0 || f.Size > maxMemberSize {
			return nil, nil, fmt.Errorf("file %q: size %d is out of range", f.Path, f.Size)
		}
	}
	if err := CheckPaths(paths); err != nil {
		return nil, nil, err
	}
	groups := groupFiles(files, 0)
	for round := 1; len(groups) > MaxLayers; round++ {
		groups = groupFiles(files, round)
	}
	layers := make([]Layer, len(groups))
	for i, group := range groups {
		var err error
		if layers[i], err = NewLayer(group); err != nil {
			return nil, nil, err
		}
	}
	return layers, groups, nil
}

// groupFiles makes one round of the plan. files are sorted by path.
func groupFiles(files []File, round int) [][]File {
	const maxRound = 24 // 16 MiB << 24 is past any file; it keeps the shift defined
	shift := min(round, maxRound)
	var groups [][]File
	open := make(map[string]int)      // directory -> its group that still takes files
	content := make(map[string]int64) // directory -> that group's bytes
	for _, f := range files {
		if f.Size >= ownLayer<<shift {
			groups = append(groups, []File{f})
			continue
		}
		key := groupKey(f.Path, round)
		i, ok := open[key]
		if !ok || content[key]+f.Size > maxGroup<<shift {
			i = len(groups)
			groups = append(groups, nil)
			open[key], content[key] = i, 0
		}
		groups[i] = append(groups[i], f)
		content[key] += f.Size
	}
	return groups
}

func groupKey(p string, round int) string {
	dir := path.Dir(p)
	if round == 0 {
		return dir
	}
	components := strings.Split(dir, "/")
	if dir == "." {
		components = nil
	}
	return strings.Join(components[:min(len(components), max(4-round, 0))], "/")
}
