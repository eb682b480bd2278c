"""The 3D scene of a case in VTK: lung and lesion surfaces, and a coloured CT volume for ray casting.

In: a Volume, its lungs and lesions, resampled through the affine to a coarse grid whose axes are the
patient's (LPS), around the lungs.  Out: uint8 RGB views from around the patient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData, vtkPiecewiseFunction
from vtkmodules.vtkFiltersCore import vtkPolyDataNormals, vtkWindowedSincPolyDataFilter
from vtkmodules.vtkFiltersGeneral import vtkDiscreteFlyingEdges3D
from vtkmodules.vtkRenderingCore import (
    vtkActor,
    vtkLight,
    vtkPolyDataMapper,
    vtkRenderer,
    vtkVolume,
    vtkVolumeProperty,
    vtkWindowToImageFilter,
)
from vtkmodules.vtkRenderingOpenGL2 import vtkEGLRenderWindow
from vtkmodules.vtkRenderingVolumeOpenGL2 import vtkOpenGLGPUVolumeRayCastMapper

from pipelines.drawing import palette
from pipelines.volume import Lesion, Lung, Volume

_VOXEL_MM = 2.5
#: lungs are large and smooth: their surface is made of blocks of so many voxels a side
_LUNG_BLOCK = 2
_SMOOTHING_PASSES = 30
#: between samples along a ray
_STEP_MM = 3.5
_OPACITY_MM = 2.5
#: a grid that strays by less than so much of a voxel from a volume's axes goes along them
_ALIGNED = 0.05
#: it is sampled so in so many parts
_PARTS = 4
_MARGIN_MM = 24.0  # around the lungs: ribs are in, arms and table are not
_RAY_MM = 2.5  # between rays: closer ones would see no more of the voxels, and cost by their number
#: Ray casting: HU -> (opacity of ``_OPACITY_MM`` of material, RGB). Linear between the points.
TRANSFER_FUNCTION: tuple[tuple[float, float, palette.RGB], ...] = (
    (-1000, 0.0, (40, 50, 70)),
    (-900, 0.006, (90, 110, 145)),  # aerated lung: a veil
    (-700, 0.016, (140, 150, 175)),
    (-400, 0.20, (215, 150, 135)),  # vessels
    (0, 0.40, (240, 175, 155)),
    (100, 0.40, (245, 200, 175)),
    (300, 0.60, (250, 240, 220)),  # calcium and bone
)
_WALL_OPACITY = 0.035  # outside of the lungs only bone is kept, this faint, for orientation
_LESION_OPACITY = 0.5
_LIGHT_LPS = (-0.45, -0.6, 0.66)  # where the baked-in light comes from: right, front, above; it turns along


class Scene:
    """Holds two off-screen windows until it is closed. Every call must come from the same thread.

    lungs: uint8 (slices, rows, columns); what is in view is told by them, before lesions are known.
    pixels_per_mm: of the views, which are parallel projections.
    """

    def __init__(self, volume: Volume, lungs: NDArray[np.uint8], *, width: int, height: int) -> None:
        self._grid = grid = _PatientGrid(volume, lungs)
        across, up = max(grid.lungs_mm[:2]), grid.lungs_mm[2]
        self.pixels_per_mm = float(min(height / (1.35 * up), width / (1.12 * across)))
        self._size = width, height
        rays = min(1.0, 1.0 / (_RAY_MM * self.pixels_per_mm))
        self._windows = [self._window(width, height), self._window(round(width * rays), round(height * rays))]
        self._lungs = _lung_actors(grid)
        self._add(self._lungs)
        self.surfaces(0.0)  # the first view takes long

    def show(self, lungs: NDArray[np.uint8], lesions: NDArray[np.uint8]) -> None:
        """Complete the scene. lungs, lesions: uint8 (slices, rows, columns), the lungs perhaps not quite as
        before: what lesions had hidden of them may be in them now."""
        if self._grid.label(lungs, lesions):
            _, surfaces = self._windows[0]
            for actor in self._lungs:
                surfaces.RemoveActor(actor)
            self._lungs = _lung_actors(self._grid)
            self._add(self._lungs)
        self._add(_lesion_actors(self._grid))
        _, rays = self._windows[1]
        rays.AddVolume(_cast_volume(self._grid))

    def _add(self, actors: list[vtkActor]) -> None:
        _, surfaces = self._windows[0]
        for actor in actors:
            surfaces.AddActor(actor)

    def close(self) -> None:
        for window, _ in self._windows:
            window.Finalize()

    def surfaces(self, degrees: float) -> NDArray[np.uint8]:
        """Surfaces, seen from ``degrees`` round from the front to the patient's left: (height, width, 3)."""
        return self._view(0, degrees)

    def ray_cast(self, degrees: float) -> NDArray[np.uint8]:
        """The same view by ray casting."""
        rays = Image.fromarray(self._view(1, degrees))
        return np.asarray(rays.resize(self._size, Image.Resampling.BICUBIC))

    def _window(self, width: int, height: int) -> tuple[vtkEGLRenderWindow, vtkRenderer]:
        renderer = vtkRenderer()
        renderer.SetBackground(*(c / 255 for c in palette.BACKGROUND))
        light = vtkLight()
        light.SetLightTypeToHeadlight()
        renderer.AddLight(light)
        # By name, not through VTK's factory: that would try to open an X display first.
        window = vtkEGLRenderWindow()
        window.SetOffScreenRendering(1)
        window.SetMultiSamples(0)
        window.SetSize(width, height)
        window.AddRenderer(renderer)
        camera = renderer.GetActiveCamera()
        camera.ParallelProjectionOn()
        camera.SetParallelScale(self._size[1] / 2 / self.pixels_per_mm)
        return window, renderer

    def _view(self, index: int, degrees: float) -> NDArray[np.uint8]:
        window, renderer = self._windows[index]
        camera = renderer.GetActiveCamera()
        angle = np.deg2rad(degrees)
        x, y, z = self._grid.centre_mm
        # LPS: the front of the patient is towards -y, the head towards +z
        camera.SetPosition(x + 2000 * np.sin(angle), y - 2000 * np.cos(angle), z)
        camera.SetFocalPoint(x, y, z)
        camera.SetViewUp(0, 0, 1)
        renderer.ResetCameraClippingRange()
        window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, 3)
        return np.ascontiguousarray(pixels[::-1])  # VTK's first row is the bottom one


class _PatientGrid:
    """HU and labels on a coarse grid along the patient's axes; arrays are (z, y, x), as VTK stores them."""

    def __init__(self, volume: Volume, lungs: NDArray[np.uint8]) -> None:
        spans = [np.flatnonzero(lungs.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        edges = [(s[0], s[-1]) if s.size else (0, n - 1) for s, n in zip(spans, lungs.shape, strict=True)]
        corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)
        lps = volume.to_patient(corners)
        low, high = lps.min(axis=0) - _MARGIN_MM, lps.max(axis=0) + _MARGIN_MM
        self.origin_mm = low
        self.centre_mm = (low + high) / 2
        self.lungs_mm = high - low - 2 * _MARGIN_MM
        self._shape = tuple(int(n) for n in np.ceil((high - low)[::-1] / _VOXEL_MM) + 1)
        # output index (z, y, x) -> LPS -> input index (slice, row, column)
        to_lps = np.eye(4)
        to_lps[:3, :3] = np.eye(3)[:, ::-1] * _VOXEL_MM
        to_lps[:3, 3] = low
        self._matrix = np.linalg.inv(volume.affine) @ to_lps
        self.hu = _sample(volume.hu, self._matrix, self._shape, -1024, smooth=True)
        self.lungs = _sample(lungs, self._matrix, self._shape, 0)
        self.lesions = np.zeros_like(self.lungs)

    def label(self, lungs: NDArray[np.uint8], lesions: NDArray[np.uint8]) -> bool:
        """Take other labels; returns whether the lungs are others."""
        before = self.lungs
        self.lungs = _sample(lungs, self._matrix, self._shape, 0)
        self.lesions = _sample(lesions, self._matrix, self._shape, 0)
        return not np.array_equal(before, self.lungs)


def _sample(
    array: NDArray[Any],
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
    outside: int,
    *,
    smooth: bool = False,
) -> NDArray[Any]:
    # Decimate in-plane first where the source is much finer: linear sampling alone would alias thin vessels.
    steps = np.linalg.norm(matrix[:3, :3], axis=1)
    stride = [max(1, int(step // 1.5)) for step in steps]
    reduced = array[tuple(slice(None, None, n) for n in stride)]
    scaled = matrix[:3] / np.array(stride)[:, None]
    scales = np.diagonal(scaled)
    if np.all(np.abs(scaled[:, :3] - np.diag(scales)) @ shape < _ALIGNED):
        return _sample_along_axes(reduced, scales, scaled[:, 3], shape, outside, smooth=smooth)
    sampled: NDArray[Any] = ndimage.affine_transform(
        reduced,
        scaled[:, :3],
        scaled[:, 3],
        output_shape=shape,
        order=1 if smooth else 0,
        mode="constant",
        cval=outside,
        prefilter=False,
    )
    return sampled


def _sample_along_axes(
    array: NDArray[Any],
    scales: NDArray[np.float64],
    offsets: NDArray[np.float64],
    shape: tuple[int, ...],
    outside: int,
    *,
    smooth: bool,
) -> NDArray[Any]:
    """``ndimage.affine_transform`` where an index says all of its axis: one axis after the other, in less
    time. A few rows at once, so that what lies between two axes takes little memory."""
    places = [offsets[axis] + scales[axis] * np.arange(shape[axis]) for axis in range(3)]
    along = _interpolated if smooth else _nearest
    sampled = np.empty(shape, array.dtype)
    for rows in np.array_split(np.arange(shape[1]), _PARTS):
        piece = array
        for axis, at in ((1, places[1][rows]), (2, places[2]), (0, places[0])):
            piece = along(piece, axis, at)
        sampled[:, rows] = np.rint(piece) if smooth else piece
    for axis, at in enumerate(places):
        planes = [slice(None)] * axis
        sampled[(*planes, (at < 0) | (at > array.shape[axis] - 1))] = outside
    return sampled


def _nearest(array: NDArray[Any], axis: int, at: NDArray[np.float64]) -> NDArray[Any]:
    return _planes(array, axis, np.floor(at + 0.5))


def _interpolated(array: NDArray[Any], axis: int, at: NDArray[np.float64]) -> NDArray[np.float32]:
    low = np.clip(np.floor(at), 0, max(array.shape[axis] - 2, 0))
    share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    below: NDArray[np.float32] = _planes(array, axis, low).astype(np.float32)
    interpolated: NDArray[np.float32] = below + share * (_planes(array, axis, low + 1.0) - below)
    return interpolated


def _planes(array: NDArray[Any], axis: int, numbers: NDArray[np.float64]) -> NDArray[Any]:
    """By indexing: ``take`` would copy all of an array that isn't contiguous first."""
    inside = np.clip(numbers, 0, array.shape[axis] - 1).astype(np.intp)
    planes: NDArray[Any] = array[(slice(None),) * axis + (inside,)]
    return planes


def _image(grid: _PatientGrid, array: NDArray[np.uint8], *, block: int = 1) -> vtkImageData:
    """Wrap (z, y, x) or (z, y, x, components) as VTK image data placed in LPS mm.

    block: voxels of the grid a side of each of the array's.
    """
    image = vtkImageData()
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    image.SetSpacing(*(block * _VOXEL_MM,) * 3)
    image.SetOrigin(*(grid.origin_mm + (block - 1) / 2 * _VOXEL_MM))
    components = array.shape[3] if array.ndim == 4 else 1
    image.GetPointData().SetScalars(numpy_to_vtk(array.reshape(-1, components), deep=True))
    return image


def _lesion_actors(grid: _PatientGrid) -> list[vtkActor]:
    actors = (
        _surface(grid, grid.lesions == kind, palette.LESION[kind], opacity=1.0, block=1) for kind in Lesion
    )
    return [actor for actor in actors if actor is not None]


def _lung_actors(grid: _PatientGrid) -> list[vtkActor]:
    actors = (
        _surface(grid, grid.lungs == lung, palette.LUNG[lung], opacity=0.2, block=_LUNG_BLOCK)
        for lung in Lung
    )
    return [actor for actor in actors if actor is not None]


def _counted(mask: NDArray[np.bool_], block: int) -> NDArray[np.uint8]:
    """How many voxels of each block are set; what is left over at the ends, margin, isn't looked at."""
    shape = [n // block for n in mask.shape]
    counts = np.zeros(shape, np.uint8)
    for corner in np.ndindex(*(block,) * 3):
        sampled = mask[tuple(slice(first, None, block) for first in corner)]
        counts += sampled[: shape[0], : shape[1], : shape[2]]
    return counts


def _surface(
    grid: _PatientGrid, mask: NDArray[np.bool_], color: palette.RGB, *, opacity: float, block: int
) -> vtkActor | None:
    if not mask.any():
        return None
    cubes = vtkDiscreteFlyingEdges3D()
    half = block**3 / 2
    cubes.SetInputData(_image(grid, (_counted(mask, block) >= half).astype(np.uint8), block=block))
    cubes.SetValue(0, 1)
    cubes.ComputeNormalsOff()  # they would be the stairs', and kept after smoothing
    smooth = vtkWindowedSincPolyDataFilter()  # Taubin: smooths without shrinking small lesions away
    smooth.SetInputConnection(cubes.GetOutputPort())
    smooth.SetNumberOfIterations(_SMOOTHING_PASSES)
    smooth.SetPassBand(0.01)
    smooth.NonManifoldSmoothingOn()
    smooth.NormalizeCoordinatesOn()
    normals = vtkPolyDataNormals()
    normals.SetInputConnection(smooth.GetOutputPort())
    normals.SplittingOff()
    mapper = vtkPolyDataMapper()
    mapper.SetInputConnection(normals.GetOutputPort())
    mapper.ScalarVisibilityOff()
    actor = vtkActor()
    actor.SetMapper(mapper)
    look = actor.GetProperty()
    look.SetColor(*(c / 255 for c in color))
    look.SetOpacity(opacity)
    look.SetSpecular(0.25)
    look.SetSpecularPower(20)
    look.SetAmbient(0.15)
    if opacity < 1.0:
        look.BackfaceCullingOn()  # one layer of veil, not two that flicker by drawing order
    return actor


def _cast_volume(grid: _PatientGrid) -> vtkVolume:
    # The shader ray caster, run by Mesa on the processor. VTK 9.7's vtkFixedPointVolumeRayCastMapper drops
    # blocks of one half of an RGBA volume (seen with one and with two threads).
    mapper = vtkOpenGLGPUVolumeRayCastMapper()
    mapper.SetInputData(_image(grid, _colored(grid)))
    mapper.SetSampleDistance(_STEP_MM)
    mapper.AutoAdjustSampleDistancesOff()  # it would follow the clock, and the picture with it
    mapper.UseJitteringOff()
    look = vtkVolumeProperty()
    look.IndependentComponentsOff()  # colours are in the voxels; the fourth component is the opacity
    look.SetInterpolationTypeToLinear()
    opacity = vtkPiecewiseFunction()
    opacity.AddPoint(0, 0.0)
    opacity.AddPoint(255, 1.0)
    look.SetScalarOpacity(opacity)
    look.ShadeOff()  # the light is in the colours already
    volume = vtkVolume()
    volume.SetMapper(mapper)
    volume.SetProperty(look)
    # The voxels hold a step's opacity: looking it up in a table, too, takes a fifth of the shader's time.
    volume.GetShaderProperty().AddFragmentShaderReplacement(
        "//VTK::ComputeOpacity::Dec", True, "float computeOpacity(vec4 rgba) { return rgba.w; }\n", False
    )
    return volume


def _colored(grid: _PatientGrid) -> NDArray[np.uint8]:
    """HU and labels -> (z, y, x, RGBA), by TRANSFER_FUNCTION inside the lungs."""
    points = [point[0] for point in TRANSFER_FUNCTION]
    hu = np.arange(points[0], points[-1] + 1)  # a table: HU are whole numbers, and far fewer than voxels
    entries: NDArray[np.intp] = np.subtract(np.clip(grid.hu, points[0], points[-1]), points[0], dtype=np.intp)
    opacities = np.interp(hu, points, [point[1] for point in TRANSFER_FUNCTION]).astype(np.float32)
    colors = [
        np.interp(hu, points, [point[2][channel] for point in TRANSFER_FUNCTION]) for channel in range(3)
    ]
    opacity = np.take(opacities, entries)
    color = np.take(np.stack(colors, axis=-1).astype(np.uint8), entries, axis=0)
    # The outermost voxel of a lung is half chest wall: left in, it would hide what is behind it.
    inside = ndimage.binary_erosion(grid.lungs > 0)
    opacity *= inside
    opacity[(grid.hu > 180) & ~inside & _near(inside, _MARGIN_MM)] = _WALL_OPACITY
    for kind in Lesion:
        hit = grid.lesions == kind
        color[hit] = palette.LESION[kind]
        opacity[hit] = _LESION_OPACITY
    rgba = np.empty((*grid.hu.shape, 4), np.uint8)
    np.multiply(color, _shade(opacity)[..., None], out=rgba[..., :3], casting="unsafe")
    seen = opacity > 0  # a small part
    rgba[..., 3] = 0
    rgba[seen, 3] = (1 - (1 - opacity[seen]) ** (_STEP_MM / _OPACITY_MM)) * 255
    return rgba


def _near(mask: NDArray[np.bool_], distance_mm: float) -> NDArray[np.bool_]:
    """What is nearer to the mask than ``distance_mm``, give or take a voxel: told on every second one."""
    far_mm = ndimage.distance_transform_edt(~mask[::2, ::2, ::2], sampling=2 * _VOXEL_MM)
    near = far_mm < distance_mm
    for axis, size in enumerate(mask.shape):
        near = near.repeat(2, axis=axis).take(np.arange(size), axis=axis)
    return np.asarray(near)


def _shade(opacity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lambert shading of the opacity's gradient, 0.45 (away from the light) to 1.0; (z, y, x)."""
    soft = ndimage.gaussian_filter(opacity, 1.0)
    along_z, along_y, along_x = np.gradient(soft)
    length = np.sqrt(along_x**2 + along_y**2 + along_z**2) + 1e-4
    towards = -(along_x * _LIGHT_LPS[0] + along_y * _LIGHT_LPS[1] + along_z * _LIGHT_LPS[2]) / length
    shaded: NDArray[np.float32] = 0.725 + 0.275 * towards
    return shaded
